//! Cards as people write them, read word by word.
//!
//! `A100 80GB SXM4`, `8x H100`, `RTX4090`, `RTX PRO 6000-class (SM120)`, `Tesla V100 (32 GB)`: a text names a device
//! where all words of one of the device's names are in it, and every other word says something true of the device or
//! nothing: its size, generation, compute capability, form factor or maker.

use plimsoll_device::{Device, devices};

/// A word of a text.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Word {
    /// Part of a model's name.
    Name(String),
    /// Memory, GB or GiB as written.
    Size(f64),
    /// A generation, as the catalogue's `arch` has it.
    Generation(&'static str),
    /// Bounds of a compute capability, in tenths: least, most.
    Capability(u32, u32),
    /// A form factor: `sxm`, `pcie`, `nvl`, `oam`.
    Form(&'static str),
    /// Says nothing: a maker, `GPU`, `class`, a kind of memory.
    Nothing,
}

/// How far a size may be from what is written on the box: B200 is sold as 180 and as 192 GB.
const SIZE_TOLERANCE: f64 = 0.07;

const GENERATIONS: [(&str, &str); 16] = [
    ("pascal", "pascal"),
    ("volta", "volta"),
    ("turing", "turing"),
    ("ampere", "ampere"),
    ("ada", "ada"),
    ("lovelace", "ada"),
    ("hopper", "hopper"),
    ("blackwell", "blackwell"),
    ("battlemage", "xe2-hpg"),
    ("alchemist", "xe-hpg"),
    ("cdna2", "cdna2"),
    ("cdna3", "cdna3"),
    ("cdna4", "cdna4"),
    ("rdna3", "rdna3"),
    ("rdna4", "rdna4"),
    ("trillium", "tpu-v6e"),
];

const FORMS: [(&str, &str); 4] = [
    ("sxm", "sxm"),
    ("pcie", "pcie"),
    ("nvl", "nvl"),
    ("oam", "oam"),
];

const NOTHING: [&str; 41] = [
    "nvidia",
    "amd",
    "intel",
    "apple",
    "google",
    "aws",
    "geforce",
    "tesla",
    "quadro",
    "radeon",
    "instinct",
    "jetson",
    "gpu",
    "gpus",
    "card",
    "cards",
    "class",
    "classes",
    "graphics",
    "generation",
    "edition",
    "workstation",
    "server",
    "laptop",
    "mobile",
    "desktop",
    "unified",
    "memory",
    "vram",
    "ram",
    "hbm2",
    "hbm2e",
    "hbm3",
    "hbm3e",
    "gddr6",
    "gddr6x",
    "gddr7",
    "maxq",
    "tensor",
    "core",
    "single",
];

/// The words of a text. Signs separate them; letters and digits that people write together are taken apart.
pub(super) fn words(text: &str) -> Vec<Word> {
    let lower = text
        .to_ascii_lowercase()
        .replace("max-q", "maxq")
        .replace("(r)", " ")
        .replace("(tm)", " ")
        .replace('\u{d7}', "x");
    let mut rest: Vec<&str> = lower
        .split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '.' | '<' | '>' | '=')))
        .filter(|w| !w.is_empty())
        .collect();
    rest.reverse();
    let mut out = Vec::new();
    while let Some(word) = rest.pop() {
        let word = word.trim_matches('.');
        if word.is_empty() {
            continue;
        }
        // `8x`, `8 x`, `x8`, `x 8`: how many there are.
        let joined = word.strip_suffix('x').filter(|_| out.is_empty());
        if joined.or(word.strip_prefix('x')).is_some_and(is_number) {
            continue;
        }
        let (count, sign) = if out.is_empty() {
            (Some(word), rest.last().copied())
        } else {
            (rest.last().copied(), Some(word))
        };
        if count.is_some_and(is_number) && sign == Some("x") {
            rest.pop();
            continue;
        }
        if let Some(capability) = capability(word, &mut rest) {
            out.push(capability);
            continue;
        }
        if let Some(size) = size(word, &mut rest) {
            out.push(Word::Size(size));
            continue;
        }
        split(word, &mut out);
    }
    out
}

fn is_number(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(|b| b.is_ascii_digit())
}

/// `24gb`, `24 gb`, `143771 mib`: GB.
fn size(word: &str, rest: &mut Vec<&str>) -> Option<f64> {
    let digits = word.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: f64 = digits.parse().ok().filter(|n: &f64| *n > 0.0)?;
    let own = &word[digits.len()..];
    let unit = if own.is_empty() { *rest.last()? } else { own };
    let of = match unit {
        "g" if !own.is_empty() => 1.0,
        "gb" | "gib" => 1.0,
        "mb" | "mib" => 1024.0,
        _ => return None,
    };
    if own.is_empty() {
        rest.pop();
    }
    Some(number / of)
}

/// `sm_120`, `sm120`, `sm90a`, `compute capability 8.6`, `compute capability < 8`, `cc>=9.0`.
fn capability(word: &str, rest: &mut Vec<&str>) -> Option<Word> {
    if let Some(own) = word.strip_prefix("sm") {
        let taken = own.is_empty().then(|| rest.last().copied()).flatten();
        let number = taken.unwrap_or(own).trim_end_matches(['a', 'f']);
        let value = if number.contains('.') {
            tenths(number)?
        } else {
            number.parse().ok()?
        };
        if !(10..1000).contains(&value) {
            return None;
        }
        if taken.is_some() {
            rest.pop();
        }
        return Some(Word::Capability(value, value));
    }
    let own = match word {
        "compute" if rest.last() == Some(&"capability") => {
            rest.pop();
            ""
        }
        _ => word
            .strip_prefix("cc")
            .filter(|o| !o.starts_with(|c: char| c.is_ascii_alphabetic()))?,
    };
    let mut text = own.to_owned();
    while tenths(text.trim_start_matches(['<', '>', '='])).is_none() {
        text.push_str(rest.pop()?);
    }
    let number = text.trim_start_matches(['<', '>', '=']);
    let value = tenths(number)?;
    let sign = &text[..text.len() - number.len()];
    Some(match sign {
        "<" => Word::Capability(0, value.saturating_sub(1)),
        "<=" => Word::Capability(0, value),
        ">" => Word::Capability(value.saturating_add(1), u32::MAX),
        ">=" => Word::Capability(value, u32::MAX),
        _ => Word::Capability(value, value),
    })
}

/// `8.6` is 86, `12` is 120.
fn tenths(number: &str) -> Option<u32> {
    let (whole, part) = number.split_once('.').unwrap_or((number, "0"));
    let part: u32 = part.parse().ok().filter(|p| *p < 10)?;
    whole
        .parse::<u32>()
        .ok()?
        .checked_mul(10)?
        .checked_add(part)
}

/// One word, with what people write together taken apart: `rtx4090`, `3090ti`, `sxm4`.
fn split(word: &str, out: &mut Vec<Word>) {
    if NOTHING.contains(&word) || word == "or" {
        return out.push(Word::Nothing);
    }
    if let Some((_, arch)) = GENERATIONS.iter().find(|(name, _)| *name == word) {
        return out.push(Word::Generation(arch));
    }
    let form = FORMS.iter().find(|(name, _)| {
        word.strip_prefix(name)
            .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_digit()))
    });
    if let Some((_, form)) = form {
        return out.push(Word::Form(form));
    }
    for prefix in ["rtx", "gtx"] {
        if let Some(rest) = word.strip_prefix(prefix).filter(|r| !r.is_empty()) {
            out.push(Word::Name(prefix.to_owned()));
            return split(rest, out);
        }
    }
    for suffix in ["ti", "super", "ada"] {
        if let Some(number) = word.strip_suffix(suffix).filter(|n| is_number(n)) {
            out.push(Word::Name(number.to_owned()));
            return split(suffix, out);
        }
    }
    out.push(Word::Name(word.to_owned()));
}

/// Whether `size` is that of a device: as on its box, or as its driver or a process sees it.
pub(super) fn has_size(d: &Device, size: f64) -> bool {
    let boxed = words(&d.marketing_memory)
        .into_iter()
        .find_map(|w| match w {
            Word::Size(s) => Some(s),
            _ => None,
        });
    let near = |of: f64| (size / of - 1.0).abs() <= SIZE_TOLERANCE;
    boxed.map_or_else(|| near(d.driver_total.gib()), near)
}

/// Whether what a word says is true of a device; names aside.
pub(super) fn is_true(word: &Word, d: &Device) -> bool {
    match word {
        Word::Size(size) => has_size(d, *size),
        Word::Generation(arch) => d.arch.eq_ignore_ascii_case(arch),
        Word::Capability(least, most) => d.compute_capability.is_some_and(|(major, minor)| {
            let own = major.saturating_mul(10).saturating_add(minor);
            (*least..=*most).contains(&own)
        }),
        Word::Name(_) | Word::Form(_) | Word::Nothing => true,
    }
}

/// How well `text` fits one of a device's names: words in common, less those of the name alone.
fn fit(text: &[Word], name: &str, d: &Device) -> Option<(usize, i64)> {
    if !text.iter().all(|w| is_true(w, d)) {
        return None;
    }
    let own = words(name);
    let names = |all: &[Word]| -> Vec<String> {
        let mut found: Vec<String> = all
            .iter()
            .filter_map(|w| {
                if let Word::Name(n) = w {
                    Some(n.clone())
                } else {
                    None
                }
            })
            .collect();
        found.sort_unstable();
        found.dedup();
        found
    };
    let (said, needed) = (names(text), names(&own));
    if needed.is_empty() || said != needed {
        return None;
    }
    // What a name has to tell it from its relatives must be said: `RTX 6000 Ada` is not `RTX 6000`.
    let told = own.iter().filter(|w| matches!(w, Word::Generation(_)));
    let generation = |all: &[Word]| all.iter().any(|w| matches!(w, Word::Generation(_)));
    if told.count() > 0 && !generation(text) && name.to_ascii_lowercase().contains("ada") {
        return None;
    }
    let beside = |w: &&Word| matches!(w, Word::Form(_) | Word::Size(_) | Word::Generation(_));
    let same = own
        .iter()
        .filter(beside)
        .filter(|w| text.contains(w))
        .count();
    let alone = own
        .iter()
        .filter(beside)
        .filter(|w| !text.contains(w))
        .count();
    let count = i64::try_from(alone).unwrap_or(i64::MAX);
    Some((same, count.saturating_neg()))
}

/// The device that `text` names, word by word; of several, the one whose name has most of its words.
pub(super) fn named(text: &str) -> Option<&'static Device> {
    let said = words(text);
    let mut best: Option<((usize, i64), &'static Device)> = None;
    for d in devices() {
        let names = std::iter::once(&d.name).chain(&d.aliases);
        let Some(score) = names.filter_map(|n| fit(&said, n, d)).max() else {
            continue;
        };
        if best.is_none_or(|(b, _)| score > b) {
            best = Some((score, d));
        }
    }
    best.map(|(_, d)| d)
}

/// Devices that a text describes without naming one: by size, generation or compute capability.
pub(super) fn described(text: &str) -> Vec<&'static Device> {
    let said = words(text);
    // A range of generations is any of them: `Volta/Turing`.
    let (generations, others): (Vec<&Word>, Vec<&Word>) =
        said.iter().partition(|w| matches!(w, Word::Generation(_)));
    let tells = |w: &&Word| matches!(w, Word::Size(_) | Word::Capability(..));
    let foreign = others
        .iter()
        .any(|w| matches!(w, Word::Name(n) if !is_maker(n)));
    let tells = !generations.is_empty() || others.iter().any(tells);
    if foreign || !tells {
        return Vec::new();
    }
    let lower = text.to_ascii_lowercase();
    let maker = ["nvidia", "amd", "intel", "apple"]
        .into_iter()
        .find(|m| lower.contains(m));
    let nvidia = ["rtx", "gtx", "geforce", "tesla"]
        .iter()
        .any(|m| lower.contains(m));
    let maker = maker.or(nvidia.then_some("nvidia"));
    devices()
        .iter()
        .filter(|d| others.iter().all(|w| is_true(w, d)))
        .filter(|d| generations.is_empty() || generations.iter().any(|w| is_true(w, d)))
        .filter(|d| maker.is_none_or(|m| d.vendor == m))
        .collect()
}

/// A series of one maker, or a word of a size alone: no card yet.
fn is_maker(name: &str) -> bool {
    ["rtx", "gtx", "a", "an", "of", "with", "the"].contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_card() {
        for (text, name) in [
            ("8x H100", "h100-80g-sxm"),
            ("4 \u{d7} H100", "h100-80g-sxm"),
            ("H100 x8", "h100-80g-sxm"),
            ("RTX 3090 x 2", "rtx-3090-24g"),
            ("8 x NVIDIA H100 80GB HBM3", "h100-80g-sxm"),
            ("H100 SXM5 80 GB", "h100-80g-sxm"),
            ("H100 PCIe 80GB", "h100-80g-pcie"),
            ("NVIDIA H100-PCIE", "h100-80g-pcie"),
            ("H100 NVL 94GB", "h100-94g-nvl"),
            ("A100", "a100-80g-sxm"),
            ("A100 40GB-class", "a100-40g-sxm"),
            ("A100 PCIe (40 GB)", "a100-40g-pcie"),
            ("A100 SXM4 80GB", "a100-80g-sxm"),
            ("NVIDIA A100 80GB PCIe", "a100-80g-pcie"),
            ("Tesla V100 16GB", "v100-16g-sxm"),
            ("V100-SXM2-32GB", "v100-32g-sxm"),
            ("RTX4090", "rtx-4090-24g"),
            ("GeForce RTX 4090 (24 GB)", "rtx-4090-24g"),
            ("RTX 3090Ti", "rtx-3090-ti-24g"),
            ("rtx_3090_ti 24GB", "rtx-3090-ti-24g"),
            ("RTX 4070 Ti Super 16GB", "rtx-4070-ti-super-16g"),
            ("RTX 6000 Ada", "rtx-6000-ada-48g"),
            ("RTX 6000", "quadro-rtx-6000-24g"),
            ("NVIDIA RTX 6000 Ada Generation (48GB)", "rtx-6000-ada-48g"),
            ("RTX 6000Ada", "rtx-6000-ada-48g"),
            ("RTX A6000 48GB", "rtx-a6000-48g"),
            ("A6000", "rtx-a6000-48g"),
            ("RTX PRO 6000-class (SM120)", "rtx-pro-6000-96g"),
            ("RTX Pro 6000 Blackwell Max-Q", "rtx-pro-6000-96g"),
            (
                "RTX PRO 6000 Blackwell Server Edition 96GB",
                "rtx-pro-6000-96g",
            ),
            ("16GB T4-class", "t4-16g"),
            ("L40S (48GB)", "l40s-48g"),
            ("B200 192GB", "b200-180g"),
            ("GB200 NVL72", "gb200-186g"),
            ("AMD Instinct MI300X OAM", "mi300x-192g"),
            ("MI355X 288GB", "mi355x-288g"),
            ("Radeon RX 7900 XTX 24GB", "rx-7900-xtx-24g"),
            ("DGX Spark", "gb10-128g"),
            ("Jetson AGX Orin 32GB", "jetson-agx-orin-32g"),
            ("Intel Arc Pro B60 24GB", "arc-pro-b60-24g"),
            ("Intel Arc Pro B70 32GB", "arc-pro-b70-32g"),
            ("Intel Gaudi 3", "gaudi3-128g"),
            ("NVIDIA Thor", "jetson-thor-128g"),
            ("Apple M4 Max 128GB", "m4-max-128g"),
            ("Apple M4 Max 48 GB", "m4-max-48g"),
        ] {
            assert_eq!(named(text).map(|d| d.name.as_str()), Some(name), "{text}");
        }
    }

    #[test]
    fn what_contradicts_itself_or_is_unknown_names_none() {
        for text in [
            "RTX 4060 Ti 8GB",
            "A100 24GB",
            "H100 (sm_120)",
            "RTX 6000 Blackwell",
            "RTX 6000 48GB",
            "RTX 2060 12GB",
            "M4 Max 24GB",
            "RTX 3090 and RTX 4090",
            "RTX 4090, RTX 3090",
            "80GB",
            "GPU",
            "",
            "x",
            "sm",
            "compute capability",
            "cc<",
        ] {
            assert_eq!(named(text).map(|d| d.name.as_str()), None, "{text}");
        }
    }

    #[test]
    fn descriptions_are_all_that_they_fit() {
        let sizes = |text: &str| {
            let found = described(text);
            let gib = found.iter().map(|d| d.usable.gib());
            let (low, high) = gib.fold((f64::MAX, 0.0), |(l, h): (f64, f64), g| {
                (l.min(g), h.max(g))
            });
            (found.len() > 1, low.round() as u64, high.round() as u64)
        };
        assert_eq!(sizes("compute capability < 8 card"), (true, 11, 47));
        assert_eq!(sizes("sm_120 card"), (true, 8, 95));
        assert_eq!(sizes("32GB Volta/Turing-class"), (true, 32, 32));
        assert_eq!(sizes("140 GB-class GPU"), (true, 140, 144));
        assert_eq!(sizes("143771 MiB GPU").1, 140);
        assert_eq!(sizes("AMD 288 GiB-class"), (true, 288, 288));
        assert!(described("a GPU").is_empty() && described("NVIDIA").is_empty());
        assert!(
            described("Ascend 64GB").is_empty(),
            "a name that nobody knows"
        );
        assert!(described("compute capability 99").is_empty());
    }
}
