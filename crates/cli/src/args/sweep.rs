//! `--sweep NAME=V1,V2,...`: values of other flags, read as those flags read them.

use clap::{Args as _, FromArgMatches as _};

use super::SimulateArgs;

/// A swept flag.
#[derive(Clone, Debug)]
pub(crate) struct Sweep {
    pub(crate) flag: &'static Swept,
    /// Every value as typed, and as the only one of a command line.
    pub(crate) values: Vec<(String, SimulateArgs)>,
}

/// A flag that can be swept.
#[derive(Debug)]
pub(crate) struct Swept {
    pub(crate) name: &'static str,
    /// Takes its value over.
    pub(crate) set: fn(&mut SimulateArgs, &SimulateArgs),
    /// Its value as a number, in bytes for sizes; `None` where it is a word.
    pub(crate) number: fn(&SimulateArgs) -> Option<f64>,
}

/// Whose values are `on` and `off`.
const PREFIX_CACHE: &str = "prefix-cache";

static FLAGS: [Swept; 16] = [
    Swept {
        name: "rate",
        set: |to, from| to.rate = from.rate,
        number: |a| a.rate,
    },
    Swept {
        name: "requests",
        set: |to, from| to.requests = from.requests,
        number: |a| a.requests.map(|n| n as f64),
    },
    Swept {
        name: "seed",
        set: |to, from| to.seed = from.seed,
        number: |a| Some(a.seed as f64),
    },
    Swept {
        name: "gpu",
        set: |to, from| to.gpu.clone_from(&from.gpu),
        number: |_| None,
    },
    Swept {
        name: "tp",
        set: |to, from| to.tp = from.tp,
        number: |a| Some(a.tp as f64),
    },
    Swept {
        name: "replicas",
        set: |to, from| to.replicas = from.replicas,
        number: |a| a.replicas.map(|n| f64::from(n.get())),
    },
    Swept {
        name: "router",
        set: |to, from| to.router = from.router,
        number: |_| None,
    },
    Swept {
        name: "kv-memory",
        set: |to, from| to.kv_memory = from.kv_memory,
        number: |a| a.kv_memory.map(|b| b.get() as f64),
    },
    Swept {
        name: "swap-space",
        set: |to, from| to.swap_space = from.swap_space,
        number: |a| Some(a.swap_space.get() as f64),
    },
    Swept {
        name: "block-size",
        set: |to, from| to.block_size = from.block_size,
        number: |a| Some(a.block_size as f64),
    },
    Swept {
        name: "max-num-seqs",
        set: |to, from| to.max_num_seqs = from.max_num_seqs,
        number: |a| Some(f64::from(a.max_num_seqs)),
    },
    Swept {
        name: "max-num-batched-tokens",
        set: |to, from| to.max_num_batched_tokens = from.max_num_batched_tokens,
        number: |a| Some(a.max_num_batched_tokens as f64),
    },
    Swept {
        name: "admission",
        set: |to, from| to.admission = from.admission,
        number: |_| None,
    },
    Swept {
        name: "preempt",
        set: |to, from| to.preempt = from.preempt,
        number: |_| None,
    },
    Swept {
        name: "kv-cache-dtype",
        set: |to, from| to.kv_cache_dtype = from.kv_cache_dtype,
        number: |_| None,
    },
    Swept {
        name: PREFIX_CACHE,
        set: |to, from| to.no_enable_prefix_caching = from.no_enable_prefix_caching,
        number: |_| None,
    },
];

/// Reads `NAME=V1,V2,...`.
pub(super) fn sweep(s: &str) -> Result<Sweep, String> {
    let (name, values) = s
        .split_once('=')
        .ok_or_else(|| format!("`{s}` has no values: write NAME=V1,V2, as rate=1,2,4"))?;
    let flag = FLAGS.iter().find(|f| f.name == name).ok_or_else(|| {
        let names: Vec<&str> = FLAGS.iter().map(|f| f.name).collect();
        format!("`{name}` cannot be swept: use {}", names.join(", "))
    })?;
    let mut out: Vec<(String, SimulateArgs)> = Vec::new();
    for value in values.split(',') {
        if out.iter().any(|(text, _)| text == value) {
            return Err(format!("{value} is given twice"));
        }
        out.push((value.to_owned(), alone(flag.name, value)?));
    }
    Ok(Sweep { flag, values: out })
}

/// A command line with this flag alone; what is wrong with its value is said in the words of that flag.
fn alone(name: &str, value: &str) -> Result<SimulateArgs, String> {
    let flag = match (name, value) {
        (PREFIX_CACHE, "on") => None,
        (PREFIX_CACHE, "off") => Some("--no-enable-prefix-caching".to_owned()),
        (PREFIX_CACHE, _) => return Err(format!("`{value}` is neither on nor off")),
        _ => Some(format!("--{name}={value}")),
    };
    // The model is none: it is required, and not looked at.
    let words = ["simulate", "-"].map(str::to_owned).into_iter().chain(flag);
    SimulateArgs::augment_args(clap::Command::new("simulate"))
        .try_get_matches_from(words)
        .and_then(|matches| SimulateArgs::from_arg_matches(&matches))
        .map_err(|e| {
            let text = e.render().to_string();
            // Possible values stand on a line of their own.
            let lines = text.lines().take_while(|l| !l.is_empty());
            let lines: Vec<&str> = lines.map(str::trim).collect();
            let text = lines.join(" ");
            text.strip_prefix("error: ").unwrap_or(&text).to_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_flag_is_read_and_set() {
        let base = alone(PREFIX_CACHE, "on").unwrap();
        for flag in &FLAGS {
            let value = match flag.name {
                "gpu" => "h100",
                "router" => "least-loaded",
                "kv-memory" | "swap-space" => "4GiB",
                "admission" => "guaranteed",
                "preempt" => "swap",
                "kv-cache-dtype" => "fp8",
                PREFIX_CACHE => "off",
                _ => "7",
            };
            let read = sweep(&format!("{}={value}", flag.name)).unwrap();
            let (text, from) = &read.values[0];
            assert_eq!(text, value);
            let mut to = base.clone();
            (flag.set)(&mut to, from);
            assert_ne!(format!("{to:?}"), format!("{base:?}"), "{}", flag.name);
            assert_eq!(format!("{to:?}"), format!("{from:?}"), "{}", flag.name);
            let words = [
                "gpu",
                "router",
                "admission",
                "preempt",
                "kv-cache-dtype",
                PREFIX_CACHE,
            ];
            assert_eq!(
                (flag.number)(&to).is_none(),
                words.contains(&flag.name),
                "{}",
                flag.name
            );
        }
    }

    #[test]
    fn values_are_refused_in_the_words_of_their_flag() {
        for (text, part) in [
            ("rate", "no values"),
            ("servers=paged", "cannot be swept: use rate, "),
            ("rate=", "invalid value '' for '--rate"),
            ("rate=1,1", "1 is given twice"),
            ("block-size=16,0", "0 is not in 1..=65536"),
            ("preempt=never", "possible values: auto, swap, recompute"),
            ("kv-memory=lots", "--kv-memory"),
            ("prefix-cache=maybe", "neither on nor off"),
        ] {
            let e = sweep(text).unwrap_err();
            assert!(e.contains(part), "{text}: {e}");
        }
    }
}
