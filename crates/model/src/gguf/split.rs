//! Models in several files: `name-00001-of-00003.gguf`.

use super::Header;
use crate::json::printable;

/// Most parts that are accepted; the names have five digits.
const MAX_PARTS: u64 = 99_999;

/// What one file says of the set that it belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Split {
    /// Which part, from 0.
    pub no: u64,
    /// Parts.
    pub count: u64,
    /// Tensors of all parts together.
    pub tensors: Option<u64>,
}

/// Why files are not the parts of one model.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SplitError {
    /// The file's name is not that of a part.
    #[error("{file} is part {part} of {count} by its header; such a file is called {expected}")]
    Name {
        /// The file.
        file: String,
        /// Which part, from 1.
        part: u64,
        /// Parts.
        count: u64,
        /// The name it should have.
        expected: String,
    },
    /// A count or number that cannot be.
    #[error("{file} says that it is part {part} of {count}")]
    Number {
        /// The file.
        file: String,
        /// Which part, from 1.
        part: u64,
        /// Parts.
        count: u64,
    },
    /// A part in the wrong place, or of another set.
    #[error("{file} should be part {expected}, but is part {found} by its header")]
    Order {
        /// The file.
        file: String,
        /// Which part it should be, from 1.
        expected: u64,
        /// Which it is.
        found: u64,
    },
    /// Parts that disagree on their number, or a file that is no part.
    #[error("{file} is not one of {count} parts by its header")]
    Count {
        /// The file.
        file: String,
        /// Parts by the first file.
        count: u64,
    },
    /// A tensor in two parts.
    #[error("the tensor `{tensor}` is in {file} and in an earlier part")]
    Twice {
        /// The tensor.
        tensor: String,
        /// The later file.
        file: String,
    },
    /// The parts hold fewer or more tensors than the first says.
    #[error("the parts hold {found} tensors together; the first part says {expected}")]
    Tensors {
        /// Tensors by `split.tensors.count`.
        expected: u64,
        /// Tensors found.
        found: u64,
    },
}

impl SplitError {
    /// What the reader can do.
    #[must_use]
    pub const fn next_step(&self) -> &'static str {
        match self {
            Self::Name { .. } => "give the files back the names that `llama-gguf-split` wrote",
            _ => "fetch all parts of one release again; they must come from one split",
        }
    }
}

impl Split {
    /// What `header` says of its set; `None` for a model in one file.
    #[must_use]
    pub fn of(header: &Header) -> Option<Self> {
        let n = |key: &str| header.get(key)?.as_u64();
        let count = n("split.count")?;
        (count > 1).then(|| Self {
            no: n("split.no").unwrap_or(0),
            count,
            tensors: n("split.tensors.count"),
        })
    }
}

/// The name of part `no` (from 0) of `count`.
#[must_use]
pub fn split_name(prefix: &str, no: u64, count: u64) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", no.saturating_add(1))
}

/// The names of all parts, in order, from the name and header of one.
///
/// # Errors
/// [`SplitError`] where the name does not follow the pattern or the numbers cannot be.
pub fn sibling_names(file: &str, split: Split) -> Result<Vec<String>, SplitError> {
    let Split { no, count, .. } = split;
    if no >= count || count > MAX_PARTS {
        return Err(SplitError::Number {
            file: printable(file),
            part: no.saturating_add(1),
            count,
        });
    }
    let suffix = split_name("", no, count);
    match file.strip_suffix(&suffix) {
        Some(prefix) if !prefix.is_empty() => {
            Ok((0..count).map(|i| split_name(prefix, i, count)).collect())
        }
        _ => Err(SplitError::Name {
            file: printable(file),
            part: no + 1,
            count,
            expected: split_name("NAME", no, count),
        }),
    }
}

/// One header of all parts, in order: the first part's metadata and everybody's tensors.
///
/// # Errors
/// [`SplitError`] where the files are not the parts of one model.
pub fn join(parts: Vec<(String, Header)>) -> Result<Header, SplitError> {
    let count = parts.len() as u64;
    let mut all = Header::default();
    let mut seen = std::collections::BTreeSet::new();
    let mut expected_tensors = None;
    for (i, (file, header)) in parts.into_iter().enumerate() {
        if count > 1 {
            let split = Split::of(&header).filter(|s| s.count == count);
            let Some(split) = split else {
                return Err(SplitError::Count {
                    file: printable(&file),
                    count,
                });
            };
            if split.no != i as u64 {
                return Err(SplitError::Order {
                    file: printable(&file),
                    expected: i as u64 + 1,
                    found: split.no.saturating_add(1),
                });
            }
            if i == 0 {
                expected_tensors = split.tensors;
            }
        }
        for t in &header.tensors {
            if !seen.insert(t.name.clone()) {
                return Err(SplitError::Twice {
                    tensor: printable(&t.name),
                    file: printable(&file),
                });
            }
        }
        if i == 0 {
            all = header;
        } else {
            all.tensors.extend(header.tensors);
        }
    }
    let found = all.tensors.len() as u64;
    match expected_tensors {
        Some(expected) if expected != found => Err(SplitError::Tensors { expected, found }),
        _ => Ok(all),
    }
}
