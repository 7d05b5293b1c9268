//! `--rates` and `--belief`: `flops=170T,memory=1.6TB/s,link=12GB/s,step=5ms`.

use plimsoll_units::Bytes;

use super::simulate::duration_or_zero;
use crate::simulated::RateChanges;

/// Reads `NAME=RATE,...`.
pub(super) fn changes(s: &str) -> Result<RateChanges, String> {
    let mut out = RateChanges::default();
    for part in s.split(',') {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("`{part}` is no rate: write NAME=RATE, as link=12GB/s"))?;
        let name = name.trim();
        let (field, read) = match name {
            "flops" => (&mut out.flops_per_s, operations(value)?),
            "memory" => (&mut out.memory_bytes_per_s, bytes(value)?),
            "link" => (&mut out.link_bytes_per_s, bytes(value)?),
            "transfer" => (&mut out.transfer_ns, duration_or_zero(value)?.0),
            "transfers-per-block" => (&mut out.transfers_per_block, transfers(value)?),
            "step" => (&mut out.step_ns, duration_or_zero(value)?.0),
            "row" => (&mut out.row_ns, duration_or_zero(value)?.0),
            other => {
                return Err(format!(
                    "`{other}` is no rate: use flops, memory, link, transfer, transfers-per-block, step and row"
                ));
            }
        };
        if field.replace(read).is_some() {
            return Err(format!("{name} is given twice"));
        }
    }
    Ok(out)
}

/// Operations per second: `170T`, `1.7e14`.
fn operations(s: &str) -> Result<u64, String> {
    let bad = || format!("`{s}` is no number of operations per second: write 170T or 1.7e14");
    let text = s.trim();
    let units = [("G", 1e9), ("T", 1e12), ("P", 1e15)];
    let (number, size) = units
        .iter()
        .find_map(|(unit, size)| Some((text.strip_suffix(unit)?, *size)))
        .unwrap_or((text, 1.0));
    let x: f64 = number.trim().parse().map_err(|_| bad())?;
    let x = (x * size).round();
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked"
    )]
    (1.0..=1e18)
        .contains(&x)
        .then_some(x as u64)
        .ok_or_else(bad)
}

/// Bytes per second: a size, with or without `/s`.
fn bytes(s: &str) -> Result<u64, String> {
    let text = s.trim();
    let size: Bytes = text
        .strip_suffix("/s")
        .unwrap_or(text)
        .parse()
        .map_err(|e: plimsoll_units::ParseBytesError| e.to_string())?;
    match size.get() {
        0 => Err(format!("`{s}`: nothing would ever arrive")),
        n => Ok(n),
    }
}

fn transfers(s: &str) -> Result<u64, String> {
    match s.trim().parse() {
        Ok(n @ 1..=1_000_000) => Ok(n),
        _ => Err(format!("`{s}` transfers per block: use 1 to 1000000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_have_units() {
        let read = changes(
            "flops=170T,memory=1.6TB/s,link=12GB/s,transfer=8us,transfers-per-block=80,step=5ms,row=0s",
        );
        let expected = RateChanges {
            flops_per_s: Some(170_000_000_000_000),
            memory_bytes_per_s: Some(1_600_000_000_000),
            link_bytes_per_s: Some(12_000_000_000),
            transfer_ns: Some(8_000),
            transfers_per_block: Some(80),
            step_ns: Some(5_000_000),
            row_ns: Some(0),
        };
        assert_eq!(read, Ok(expected));
        assert_eq!(changes("flops=1.7e14"), changes("flops=170T"));
        for bad in [
            "",
            "flops",
            "flops=0",
            "flops=-1T",
            "flops=nan",
            "flops=1e300",
            "memory=0",
            "memory=fast",
            "link=-1GB/s",
            "step=5",
            "transfers-per-block=0",
            "speed=1",
            "row=1us,row=2us",
        ] {
            assert!(changes(bad).is_err(), "{bad}");
        }
    }
}
