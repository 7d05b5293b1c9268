//! [`check`]: whether stored weights are numbers (`--check-weights`).

use plimsoll_units::Bytes;

use super::checkpoint::Checkpoint;
use super::{Progress, SCRATCH, WeightsError, decode};

/// What is odd about a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorCheck {
    /// Its stored name.
    pub tensor: String,
    /// Its elements.
    pub elements: u64,
    /// Elements that are no number.
    pub nan: u64,
    /// Elements that are infinite.
    pub infinite: u64,
    /// Whether it is a matrix of zeros only; a bias may be one.
    pub zero_matrix: bool,
}

/// Reads all tensors of known types and reports, in the order of the files, those with NaN or infinities, and
/// matrices of zeros.
///
/// # Errors
/// [`WeightsError::Read`].
pub fn check(
    checkpoint: &Checkpoint,
    progress: &Progress<'_>,
) -> Result<Vec<TensorCheck>, WeightsError> {
    let tensors: Vec<_> = checkpoint
        .all()
        .into_iter()
        .filter(|t| decode::is_known(t.dtype))
        .map(|t| {
            // The header's products were checked.
            let elements = t.shape.iter().product::<u64>();
            let bytes = t.dtype.bytes(elements).map_or(0, Bytes::get);
            (t, elements, bytes)
        })
        .collect();
    let total = tensors.iter().map(|t| t.2).sum();
    let (mut bytes, mut floats) = (Vec::new(), Vec::new());
    let (mut done, mut odd) = (0, Vec::new());
    for (t, elements, len) in tensors {
        let (block, size) = decode::block(t.dtype);
        let step = SCRATCH / 4 / size as u64 * size as u64;
        let mut at = 0;
        let (mut nan, mut infinite, mut nonzero) = (0_u64, 0_u64, false);
        while at < len {
            let n = usize::try_from(step.min(len - at)).unwrap_or(0);
            bytes.resize(n, 0);
            floats.resize(n / size * block, 0.0);
            checkpoint
                .read(t.file, t.begin + at, &mut bytes)
                .map_err(|problem| WeightsError::Read {
                    tensor: plimsoll_model::json::printable(t.name),
                    file: checkpoint.path(t.file).to_owned(),
                    problem,
                })?;
            decode::floats(t.dtype, &bytes, &mut floats);
            for x in &floats {
                nan += u64::from(x.is_nan());
                infinite += u64::from(x.is_infinite());
                nonzero |= *x != 0.0;
            }
            at += n as u64;
            done += n as u64;
            progress(Bytes::new(done), Bytes::new(total));
        }
        let zero_matrix = !nonzero && elements > 0 && t.shape.len() > 1;
        if nan > 0 || infinite > 0 || zero_matrix {
            odd.push(TensorCheck {
                tensor: t.name.to_owned(),
                elements,
                nan,
                infinite,
                zero_matrix,
            });
        }
    }
    Ok(odd)
}
