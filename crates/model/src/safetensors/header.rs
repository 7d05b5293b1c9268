//! The header of one safetensors file.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use plimsoll_units::DType;
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::json::{self, JsonError, printable};
use crate::read_at::{NotAModel, ReadAt, ReadError};

/// Largest accepted header, as in the reference implementation.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;
/// Highest accepted rank; the largest in published checkpoints is 5.
const MAX_RANK: usize = 16;
/// Bytes before the JSON.
const PREFIX: u64 = 8;

/// What one file holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SafetensorsHeader {
    /// The tensors, in the order of their data.
    pub tensors: Vec<StoredTensor>,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Where the data begins: 8 bytes and the header.
    pub data_start: u64,
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    pub dtype: DType,
    /// Its shape; empty for a scalar.
    pub shape: Vec<u64>,
    /// First byte, counted from the start of the data.
    pub begin: u64,
    /// Byte after the last.
    pub end: u64,
}

/// Why a file is no safetensors file that can be trusted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {offset}: {problem}")]
pub struct SafetensorsError {
    /// Where in the file.
    pub offset: u64,
    /// What is wrong there.
    pub problem: SafetensorsProblem,
}

/// What is wrong with a safetensors file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SafetensorsProblem {
    /// Fewer than the 8 bytes of the header's length.
    #[error("the file has {size} bytes; a safetensors file begins with 8 bytes of header length")]
    TooShort {
        /// Size of the file.
        size: u64,
    },
    /// Something else under this name.
    #[error("this is {}", .0.name())]
    NotAModel(NotAModel),
    /// The header would leave the file.
    #[error("the header should be {len} bytes long, but only {left} bytes follow")]
    HeaderPastEnd {
        /// Length as stated.
        len: u64,
        /// Bytes after the length.
        left: u64,
    },
    /// The header is larger than any real one.
    #[error("the header should be {len} bytes long; the format allows {MAX_HEADER_BYTES}")]
    HeaderTooLarge {
        /// Length as stated.
        len: u64,
    },
    /// The header does not begin with `{`.
    #[error("the header begins with {found:#04x}, not with `{{`")]
    NotAnObject {
        /// Its first byte.
        found: u8,
    },
    /// The header is not acceptable JSON.
    #[error("the header is no valid JSON: {0}")]
    Json(String),
    /// A type that the format does not have.
    #[error("tensor `{tensor}` has the unknown type `{dtype}`")]
    UnknownDType {
        /// The tensor.
        tensor: String,
        /// The type as written.
        dtype: String,
    },
    /// More dimensions than any real tensor.
    #[error("tensor `{tensor}` has {rank} dimensions; at most {MAX_RANK} are accepted")]
    Rank {
        /// The tensor.
        tensor: String,
        /// Its dimensions.
        rank: usize,
    },
    /// The product of the shape, or its bytes, leave 64 bits.
    #[error("tensor `{tensor}` has the shape {shape:?}, whose size exceeds 2^64")]
    ShapeOverflow {
        /// The tensor.
        tensor: String,
        /// Its shape.
        shape: Vec<u64>,
    },
    /// Elements below 8 bits that do not fill whole bytes.
    #[error(
        "tensor `{tensor}` has {elements} elements of type {dtype}, which do not fill whole bytes"
    )]
    PartialByte {
        /// The tensor.
        tensor: String,
        /// Its elements.
        elements: u64,
        /// Its type.
        dtype: DType,
    },
    /// The end lies before the beginning.
    #[error("tensor `{tensor}` ends at {end}, before it begins at {begin}")]
    Backwards {
        /// The tensor.
        tensor: String,
        /// First byte.
        begin: u64,
        /// Byte after the last.
        end: u64,
    },
    /// Shape and extent disagree.
    #[error(
        "tensor `{tensor}` needs {needed} bytes by type and shape, but its extent has {extent}"
    )]
    SizeMismatch {
        /// The tensor.
        tensor: String,
        /// Bytes by type and shape.
        needed: u64,
        /// Bytes by its offsets.
        extent: u64,
    },
    /// Bytes that belong to no tensor.
    #[error("{len} bytes before tensor `{tensor}` belong to no tensor")]
    Hole {
        /// The tensor after the hole.
        tensor: String,
        /// Bytes of the hole.
        len: u64,
    },
    /// Two tensors share bytes.
    #[error("tensor `{tensor}` begins inside `{other}`")]
    Overlap {
        /// The later tensor.
        tensor: String,
        /// The earlier one.
        other: String,
    },
    /// The tensors need more than the file has.
    #[error(
        "tensor `{tensor}` ends at byte {needed} of the file, which has {size}: it is truncated"
    )]
    Truncated {
        /// The first tensor past the end.
        tensor: String,
        /// Size the file should have at least.
        needed: u64,
        /// Size it has.
        size: u64,
    },
    /// Bytes after the last tensor.
    #[error("{len} bytes follow the last tensor; the file should end at {expected}")]
    Trailing {
        /// Bytes too many.
        len: u64,
        /// Size the file should have.
        expected: u64,
    },
    /// The bytes could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
}

impl SafetensorsError {
    /// What the reader can do.
    #[must_use]
    pub fn next_step(&self) -> &'static str {
        match &self.problem {
            SafetensorsProblem::NotAModel(what) => what.next_step(),
            SafetensorsProblem::TooShort { .. }
            | SafetensorsProblem::HeaderPastEnd { .. }
            | SafetensorsProblem::Truncated { .. } => {
                "the download is incomplete: fetch the file again and compare its size"
            }
            SafetensorsProblem::Trailing { .. } => {
                "fetch the file again; data after the last tensor is never read, and never trusted"
            }
            SafetensorsProblem::HeaderTooLarge { .. } | SafetensorsProblem::NotAnObject { .. } => {
                "check that this is a safetensors file"
            }
            SafetensorsProblem::UnknownDType { .. } => {
                "a newer format version may have written it: report the type's name"
            }
            SafetensorsProblem::Read(_) => "check the disk or the connection and try again",
            _ => "write the file again with the safetensors library, or fetch it anew",
        }
    }
}

/// The type with this name in a safetensors header.
fn dtype(name: &str) -> Option<DType> {
    Some(match name {
        "BOOL" => DType::Bool,
        "F4" => DType::F4,
        "F6_E2M3" => DType::F6E2m3,
        "F6_E3M2" => DType::F6E3m2,
        "U8" => DType::U8,
        "I8" => DType::I8,
        "F8_E5M2" => DType::F8E5m2,
        "F8_E4M3" => DType::F8E4m3,
        "F8_E8M0" => DType::F8E8m0,
        "F8_E4M3FNUZ" => DType::F8E4m3Fnuz,
        "F8_E5M2FNUZ" => DType::F8E5m2Fnuz,
        "I16" => DType::I16,
        "U16" => DType::U16,
        "F16" => DType::F16,
        "BF16" => DType::Bf16,
        "I32" => DType::I32,
        "U32" => DType::U32,
        "F32" => DType::F32,
        "C64" => DType::C64,
        "F64" => DType::F64,
        "I64" => DType::I64,
        "U64" => DType::U64,
        _ => return None,
    })
}

impl SafetensorsHeader {
    /// The length of the header's JSON, from the first 8 bytes of a file of `size` bytes, so that
    /// a remote reader knows how much to fetch.
    ///
    /// # Errors
    /// [`SafetensorsError`] where the length cannot be right.
    pub fn json_len(first: [u8; 8], size: u64) -> Result<u64, SafetensorsError> {
        let fail = |problem| Err(SafetensorsError { offset: 0, problem });
        let len = u64::from_le_bytes(first);
        let left = size.saturating_sub(PREFIX);
        // Text in place of a length reads as a huge number: say what it is, if we know.
        if (len > left || len > MAX_HEADER_BYTES)
            && let Some(what) = NotAModel::sniff(&first)
        {
            return fail(SafetensorsProblem::NotAModel(what));
        }
        if len > MAX_HEADER_BYTES {
            return fail(SafetensorsProblem::HeaderTooLarge { len });
        }
        if len > left {
            return fail(SafetensorsProblem::HeaderPastEnd { len, left });
        }
        Ok(len)
    }

    /// Reads and checks the header of `source`.
    ///
    /// # Errors
    /// [`SafetensorsError`] with the offset of the first rule that is broken.
    pub fn read(source: &impl ReadAt) -> Result<Self, SafetensorsError> {
        let at = |offset: u64| {
            move |err: ReadError| SafetensorsError {
                offset,
                problem: err.into(),
            }
        };
        let size = source.size();
        let mut start = vec![0; usize::try_from(size.min(64)).unwrap_or(64)];
        source.read_at(0, &mut start).map_err(at(0))?;
        let Some(first) = start.first_chunk::<8>() else {
            let problem = match NotAModel::sniff(&start) {
                Some(what) => SafetensorsProblem::NotAModel(what),
                None => SafetensorsProblem::TooShort { size },
            };
            return Err(SafetensorsError { offset: 0, problem });
        };
        let len = match Self::json_len(*first, size) {
            Ok(len) => len,
            Err(err) => {
                let problem =
                    NotAModel::sniff(&start).map_or(err.problem, SafetensorsProblem::NotAModel);
                return Err(SafetensorsError { offset: 0, problem });
            }
        };
        // `json_len` bounds it by the file and by 100 MB.
        let mut json = vec![0; usize::try_from(len).unwrap_or(0)];
        source.read_at(PREFIX, &mut json).map_err(at(PREFIX))?;
        Self::parse(&json, size)
    }

    /// Checks the JSON of the header of a file of `size` bytes.
    ///
    /// # Errors
    /// As [`SafetensorsHeader::read`].
    pub fn parse(json: &[u8], size: u64) -> Result<Self, SafetensorsError> {
        let bad_json = |err: &JsonError| SafetensorsError {
            offset: PREFIX.saturating_add(err.offset),
            problem: SafetensorsProblem::Json(err.to_string()),
        };
        match json.first() {
            Some(b'{') => {}
            Some(&found) => {
                return Err(SafetensorsError {
                    offset: PREFIX,
                    problem: SafetensorsProblem::NotAnObject { found },
                });
            }
            None => {
                return Err(SafetensorsError {
                    offset: PREFIX,
                    problem: SafetensorsProblem::Json("it is empty".to_owned()),
                });
            }
        }
        let text = json::text(json).map_err(|e| bad_json(&e))?;
        let raw: RawHeader =
            serde_json::from_str(text).map_err(|e| bad_json(&JsonError::from_serde(json, &e)))?;
        let data_start = PREFIX.saturating_add(json.len() as u64);
        let data = size.saturating_sub(data_start);

        let mut tensors = raw
            .tensors
            .into_iter()
            .map(|(name, t)| t.check(name))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|problem| SafetensorsError {
                offset: PREFIX,
                problem,
            })?;
        tensors.sort_by(|a, b| (a.begin, a.end, &a.name).cmp(&(b.begin, b.end, &b.name)));
        check_tiling(&tensors, data, data_start, size)?;
        Ok(Self {
            tensors,
            metadata: raw.metadata,
            data_start,
        })
    }
}

/// The tensors must cover the data exactly: no hole, no overlap, nothing after the last.
fn check_tiling(
    tensors: &[StoredTensor],
    data: u64,
    data_start: u64,
    size: u64,
) -> Result<(), SafetensorsError> {
    let mut covered = 0_u64;
    let mut last: Option<&StoredTensor> = None;
    for t in tensors {
        let fail = |offset: u64, problem| {
            Err(SafetensorsError {
                offset: data_start.saturating_add(offset),
                problem,
            })
        };
        let tensor = || printable(&t.name);
        if t.end > data {
            let needed = data_start.saturating_add(t.end);
            return fail(
                t.begin,
                SafetensorsProblem::Truncated {
                    tensor: tensor(),
                    needed,
                    size,
                },
            );
        }
        if t.begin < covered {
            let other = last.map_or_else(String::new, |o| printable(&o.name));
            return fail(
                t.begin,
                SafetensorsProblem::Overlap {
                    tensor: tensor(),
                    other,
                },
            );
        }
        if t.begin > covered {
            let len = t.begin - covered;
            return fail(
                covered,
                SafetensorsProblem::Hole {
                    tensor: tensor(),
                    len,
                },
            );
        }
        covered = t.end;
        last = Some(t);
    }
    if covered < data {
        return Err(SafetensorsError {
            offset: data_start.saturating_add(covered),
            problem: SafetensorsProblem::Trailing {
                len: data - covered,
                expected: data_start.saturating_add(covered),
            },
        });
    }
    Ok(())
}

/// The header as written.
struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Header;
        impl<'de> Visitor<'de> for Header {
            type Value = RawHeader;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
                let mut out = RawHeader {
                    tensors: Vec::new(),
                    metadata: BTreeMap::new(),
                };
                let mut seen = BTreeSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(json::duplicate(&key)));
                    }
                    if key == "__metadata__" {
                        out.metadata = map.next_value_seed(json::StringMap)?;
                    } else {
                        out.tensors.push((key, map.next_value()?));
                    }
                }
                Ok(out)
            }
        }
        de.deserialize_map(Header)
    }
}

/// One tensor as written.
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    offsets: [u64; 2],
}

impl<'de> Deserialize<'de> for RawTensor {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        struct Tensor;
        impl<'de> Visitor<'de> for Tensor {
            type Value = RawTensor;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with dtype, shape and data_offsets")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawTensor, A::Error> {
                let (mut dtype, mut shape, mut offsets) = (None, None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let again = match key.as_str() {
                        "dtype" => dtype.replace(map.next_value()?).is_some(),
                        "shape" => shape.replace(map.next_value()?).is_some(),
                        "data_offsets" => offsets.replace(map.next_value()?).is_some(),
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                            false
                        }
                    };
                    if again {
                        return Err(A::Error::custom(json::duplicate(&key)));
                    }
                }
                Ok(RawTensor {
                    dtype: dtype.ok_or_else(|| A::Error::missing_field("dtype"))?,
                    shape: shape.ok_or_else(|| A::Error::missing_field("shape"))?,
                    offsets: offsets.ok_or_else(|| A::Error::missing_field("data_offsets"))?,
                })
            }
        }
        de.deserialize_map(Tensor)
    }
}

impl RawTensor {
    fn check(self, name: String) -> Result<StoredTensor, SafetensorsProblem> {
        let tensor = || printable(&name);
        let Some(dtype) = dtype(&self.dtype) else {
            return Err(SafetensorsProblem::UnknownDType {
                tensor: tensor(),
                dtype: printable(&self.dtype),
            });
        };
        let shape = self.shape;
        if shape.len() > MAX_RANK {
            return Err(SafetensorsProblem::Rank {
                tensor: tensor(),
                rank: shape.len(),
            });
        }
        let elements = shape.iter().try_fold(1_u64, |acc, &d| acc.checked_mul(d));
        let bytes = elements.and_then(|n| dtype.bytes(n).ok());
        let (Some(elements), Some(bytes)) = (elements, bytes) else {
            return Err(SafetensorsProblem::ShapeOverflow {
                tensor: tensor(),
                shape,
            });
        };
        if !elements.is_multiple_of(dtype.block_elements()) {
            return Err(SafetensorsProblem::PartialByte {
                tensor: tensor(),
                elements,
                dtype,
            });
        }
        let [begin, end] = self.offsets;
        let Some(extent) = end.checked_sub(begin) else {
            return Err(SafetensorsProblem::Backwards {
                tensor: tensor(),
                begin,
                end,
            });
        };
        if bytes.get() != extent {
            return Err(SafetensorsProblem::SizeMismatch {
                tensor: tensor(),
                needed: bytes.get(),
                extent,
            });
        }
        Ok(StoredTensor {
            name,
            dtype,
            shape,
            begin,
            end,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut out = (json.len() as u64).to_le_bytes().to_vec();
        out.extend_from_slice(json.as_bytes());
        out.resize(out.len() + data, 0);
        out
    }

    fn read(json: &str, data: usize) -> Result<SafetensorsHeader, SafetensorsError> {
        SafetensorsHeader::read(&file(json, data).as_slice())
    }

    fn problem(json: &str, data: usize) -> SafetensorsProblem {
        read(json, data).unwrap_err().problem
    }

    const TWO: &str = r#"{"__metadata__":{"format":"pt"},
        "b":{"dtype":"BF16","shape":[2,3],"data_offsets":[4,16]},
        "a":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}"#;

    #[test]
    fn reads_tensors_in_the_order_of_their_data() {
        let h = read(TWO, 16).unwrap();
        let names: Vec<&str> = h.tensors.iter().map(|t| t.name.as_str()).collect();
        assert_eq!(names, ["a", "b"]);
        assert_eq!(h.tensors[1].shape, [2, 3]);
        assert_eq!(h.tensors[1].dtype, DType::Bf16);
        assert_eq!(h.metadata["format"], "pt");
        assert_eq!(h.data_start, 8 + TWO.len() as u64);
    }

    #[test]
    fn every_type_of_the_format_has_its_size() {
        let cases = [
            ("BOOL", 4, 4),
            ("F4", 4, 2),
            ("F6_E2M3", 4, 3),
            ("F6_E3M2", 8, 6),
            ("U8", 4, 4),
            ("I8", 4, 4),
            ("F8_E5M2", 4, 4),
            ("F8_E4M3", 4, 4),
            ("F8_E8M0", 4, 4),
            ("F8_E4M3FNUZ", 4, 4),
            ("F8_E5M2FNUZ", 4, 4),
            ("I16", 4, 8),
            ("U16", 4, 8),
            ("F16", 4, 8),
            ("BF16", 4, 8),
            ("I32", 4, 16),
            ("U32", 4, 16),
            ("F32", 4, 16),
            ("C64", 4, 32),
            ("F64", 4, 32),
            ("I64", 4, 32),
            ("U64", 4, 32),
        ];
        for (name, n, bytes) in cases {
            let json =
                format!(r#"{{"t":{{"dtype":"{name}","shape":[{n}],"data_offsets":[0,{bytes}]}}}}"#);
            assert!(read(&json, bytes).is_ok(), "{name}");
        }
    }

    #[test]
    fn i1_short_files_and_absurd_lengths() {
        for len in [0, 7] {
            let bytes = vec![0_u8; len];
            let err = SafetensorsHeader::read(&bytes.as_slice()).unwrap_err();
            assert!(
                matches!(err.problem, SafetensorsProblem::TooShort { .. }),
                "{err}"
            );
        }
        for len in [1, 100_000_000, 100_000_001, 1 << 63, u64::MAX] {
            let mut bytes = u64::to_le_bytes(len).to_vec();
            bytes.push(b'{');
            let err = SafetensorsHeader::read(&bytes.as_slice()).unwrap_err();
            assert!(!err.next_step().is_empty());
            match err.problem {
                SafetensorsProblem::Json(_) => assert_eq!(len, 1),
                SafetensorsProblem::HeaderPastEnd { .. } => assert_eq!(len, 100_000_000),
                SafetensorsProblem::HeaderTooLarge { .. } => assert!(len > 100_000_000),
                other => panic!("{len}: {other}"),
            }
        }
        let empty = file("", 0);
        assert!(SafetensorsHeader::read(&empty.as_slice()).is_err());
    }

    #[test]
    fn i2_truncated_and_overlong_files() {
        let whole = file(TWO, 16);
        for cut in 0..whole.len() {
            assert!(
                SafetensorsHeader::read(&&whole[..cut]).is_err(),
                "cut at {cut}"
            );
        }
        let err = SafetensorsHeader::read(&&whole[..whole.len() - 1]).unwrap_err();
        assert!(
            matches!(err.problem, SafetensorsProblem::Truncated { needed, size, .. }
            if needed == whole.len() as u64 && size == needed - 1),
            "{err}"
        );
        assert!(matches!(
            problem(TWO, 17),
            SafetensorsProblem::Trailing { len: 1, .. }
        ));
    }

    #[test]
    fn i3_headers_that_are_no_header() {
        assert!(matches!(
            problem(" {}", 0),
            SafetensorsProblem::NotAnObject { found: b' ' }
        ));
        assert!(matches!(problem("{}x", 0), SafetensorsProblem::Json(_)));
        // Padding with spaces is the reference writer's own habit.
        assert!(read("{}      ", 0).is_ok());
        let mut bad = file(r#"{"a":1}"#, 0);
        bad[10] = 0xff;
        let err = SafetensorsHeader::read(&bad.as_slice()).unwrap_err();
        assert_eq!(err.offset, 10);
        // Names are escaped in messages, and never used as paths.
        let json =
            "{\"../\\u0000\\u001b[31m\":{\"dtype\":\"X\",\"shape\":[],\"data_offsets\":[0,0]}}";
        let text = read(json, 0).unwrap_err().to_string();
        assert!(text.contains("\\u{0}\\u{1b}[31m"), "{text}");
    }

    #[test]
    fn i4_a_key_that_occurs_twice() {
        for second in ["[0,2]", "[2,4]"] {
            let json = format!(
                r#"{{"a":{{"dtype":"F16","shape":[1],"data_offsets":[0,2]}},"a":{{"dtype":"F16","shape":[1],"data_offsets":{second}}}}}"#
            );
            let text = problem(&json, 4).to_string();
            assert!(text.contains("the key `a` occurs twice"), "{text}");
        }
        let json = r#"{"a":{"dtype":"F16","dtype":"F16","shape":[1],"data_offsets":[0,2]}}"#;
        assert!(
            problem(json, 2)
                .to_string()
                .contains("`dtype` occurs twice")
        );
    }

    #[test]
    fn i5_extents_that_do_not_tile_the_file() {
        let two = |a: &str, b: &str| {
            format!(
                r#"{{"a":{{"dtype":"U8","shape":[4],"data_offsets":{a}}},"b":{{"dtype":"U8","shape":[4],"data_offsets":{b}}}}}"#
            )
        };
        assert!(matches!(
            problem(&two("[0,4]", "[2,6]"), 6),
            SafetensorsProblem::Overlap { .. }
        ));
        assert!(matches!(
            problem(&two("[0,4]", "[0,4]"), 8),
            SafetensorsProblem::Overlap { .. }
        ));
        assert!(matches!(
            problem(&two("[0,4]", "[6,10]"), 10),
            SafetensorsProblem::Hole { len: 2, .. }
        ));
        assert!(matches!(
            problem(&two("[1,5]", "[5,9]"), 9),
            SafetensorsProblem::Hole { len: 1, .. }
        ));
        assert!(matches!(
            problem(&two("[0,4]", "[8,4]"), 8),
            SafetensorsProblem::Backwards { .. }
        ));
        assert!(matches!(
            problem(&two("[0,4]", "[4,8]"), 7),
            SafetensorsProblem::Truncated { .. }
        ));
        let far = two("[0,4]", "[18446744073709551611,18446744073709551615]");
        assert!(matches!(
            problem(&far, 8),
            SafetensorsProblem::Truncated { .. }
        ));
        assert!(
            read(&two("[4,8]", "[0,4]"), 8).is_ok(),
            "unsorted offsets are legal"
        );
    }

    #[test]
    fn i6_shapes_that_do_not_give_the_extent() {
        let one = |dtype: &str, shape: &str, end: u64| {
            format!(r#"{{"t":{{"dtype":"{dtype}","shape":{shape},"data_offsets":[0,{end}]}}}}"#)
        };
        let big = "[4294967296,4294967296]";
        assert!(matches!(
            problem(&one("U8", big, 0), 0),
            SafetensorsProblem::ShapeOverflow { .. }
        ));
        let wide = "[4611686018427387904]";
        assert!(matches!(
            problem(&one("F64", wide, 0), 0),
            SafetensorsProblem::ShapeOverflow { .. }
        ));
        assert!(matches!(
            problem(&one("F32", "[3]", 8), 8),
            SafetensorsProblem::SizeMismatch { needed: 12, .. }
        ));
        assert!(matches!(
            problem(&one("F4", "[3]", 2), 2),
            SafetensorsProblem::PartialByte { .. }
        ));
        let rank = format!("[{}]", vec!["1"; 100].join(","));
        assert!(matches!(
            problem(&one("U8", &rank, 1), 1),
            SafetensorsProblem::Rank { rank: 100, .. }
        ));
        assert!(matches!(
            problem(&one("F7", "[1]", 1), 1),
            SafetensorsProblem::UnknownDType { .. }
        ));
        for shape in [
            "[-1]",
            "[1.5]",
            "[null]",
            "\"x\"",
            "[1e3]",
            "[18446744073709551616]",
        ] {
            assert!(
                matches!(
                    problem(&one("U8", shape, 1), 1),
                    SafetensorsProblem::Json(_)
                ),
                "{shape}"
            );
        }
        assert!(matches!(
            problem(r#"{"t":{"dtype":"U8","shape":[1]}}"#, 1),
            SafetensorsProblem::Json(_)
        ));
    }

    #[test]
    fn i11_other_files_under_this_name_are_named() {
        let lfs = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n";
        let page = b"<!DOCTYPE html><html><head><title>401</title></head></html>";
        for (bytes, name) in [
            (&lfs[..], "Git LFS"),
            (page, "web page"),
            (b"PK\x03\x04\0\0\0\0\0\0\0\0", "zip"),
        ] {
            let err = SafetensorsHeader::read(&bytes).unwrap_err();
            assert!(err.to_string().contains(name), "{err}");
        }
    }

    #[test]
    fn i14_no_single_bit_flip_panics_or_hides() {
        let whole = file(TWO, 16);
        let header = SafetensorsHeader::read(&whole.as_slice()).unwrap();
        for bit in 0..(whole.len() - 16) * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            // A flip inside a name, type of equal size or metadata may still be a legal file; it
            // must then tile the same bytes.
            if let Ok(h) = SafetensorsHeader::read(&bytes.as_slice()) {
                let end = |h: &SafetensorsHeader| h.tensors.iter().map(|t| t.end).max();
                assert_eq!(end(&h), end(&header), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_million_tensors_take_a_moment_not_a_minute() {
        let mut json = String::from("{");
        for i in 0..100_000 {
            if i > 0 {
                json.push(',');
            }
            json.push_str(&format!(
                r#""t{i}":{{"dtype":"U8","shape":[1],"data_offsets":[{i},{}]}}"#,
                i + 1
            ));
        }
        json.push('}');
        let h = SafetensorsHeader::parse(json.as_bytes(), 8 + json.len() as u64 + 100_000).unwrap();
        assert_eq!(h.tensors.len(), 100_000);
    }
}
