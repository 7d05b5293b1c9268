//! Flags of `simulate` that have a syntax of their own.

use plimsoll_simulate::Slo;
use plimsoll_units::Nanos;

use crate::simulated::TenantShare;

/// Share of the requests that must keep a service level unless told.
const ATTAIN: f64 = 0.99;

/// A duration above 0: a number and its unit.
pub(super) fn duration(s: &str) -> Result<Nanos, String> {
    match duration_or_zero(s)? {
        Nanos(0) => Err(format!("`{s}` is no time at all: use 1ns or more")),
        d => Ok(d),
    }
}

/// A duration: a number and its unit.
pub(super) fn duration_or_zero(s: &str) -> Result<Nanos, String> {
    let text = s.trim();
    let bad = || format!("`{s}` is no duration: write 1.5s, 50ms or 800us");
    let units = [
        ("ms", 1e6),
        ("us", 1e3),
        ("µs", 1e3),
        ("ns", 1.0),
        ("s", 1e9),
    ];
    let (number, size) = units
        .iter()
        .find_map(|(unit, size)| Some((text.strip_suffix(unit)?, size)))
        .ok_or_else(bad)?;
    let number: f64 = number.trim().parse().map_err(|_| bad())?;
    let ns = (number * size).round();
    // A hundred years, far below 2^64.
    if !(0.0..=3.2e18).contains(&ns) {
        return Err(format!("`{s}` is out of range: from 0 to 3e9s"));
    }
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked"
    )]
    Ok(Nanos(ns as u64))
}

/// `ttft=1s,itl=50ms,attain=0.99`.
pub(super) fn slo(s: &str) -> Result<Slo, String> {
    let (mut ttft, mut per_token, mut attain) = (None, None, None);
    for part in s.split(',') {
        let (name, value) = part
            .split_once('=')
            .ok_or_else(|| format!("`{part}` is no bound: write ttft=1s,itl=50ms"))?;
        let twice = match name.trim() {
            "ttft" => ttft.replace(duration(value)?).is_some(),
            "itl" | "tpot" => per_token.replace(duration(value)?).is_some(),
            "attain" => attain.replace(share_of_all(value)?).is_some(),
            other => {
                return Err(format!(
                    "`{other}` is no part of a service level: use ttft, itl (or tpot) and attain"
                ));
            }
        };
        if twice {
            return Err(format!("{} is given twice", name.trim()));
        }
    }
    if ttft.is_none() && per_token.is_none() {
        return Err("no bound: write ttft=1s, itl=50ms, or both".to_owned());
    }
    Ok(Slo {
        ttft,
        per_token,
        attain: attain.unwrap_or(ATTAIN),
    })
}

/// How much beams branch.
pub(super) fn drift(s: &str) -> Result<f64, String> {
    match s.trim().parse() {
        Ok(x) if (0.0..=1e6).contains(&x) => Ok(x),
        _ => Err(format!("`{s}` is no drift: use a number from 0 to 1e6")),
    }
}

/// The rights of the tenants.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tenants(pub(crate) Vec<TenantShare>);

/// `0.2:0.5,0:1`.
pub(super) fn tenants(s: &str) -> Result<Tenants, String> {
    let tenants = s.split(',').map(tenant).collect::<Result<Vec<_>, _>>()?;
    let floors: f64 = tenants.iter().map(|t| t.floor).sum();
    // Shares written in decimals are not exact in binary.
    if floors > 1.0 + 1e-9 {
        return Err(format!(
            "the floors add up to {floors}: nobody can be sure of more than the pool"
        ));
    }
    Ok(Tenants(tenants))
}

fn tenant(s: &str) -> Result<TenantShare, String> {
    let bad = || format!("`{s}` is no FLOOR:CAP: write two shares from 0 to 1, as 0.2:0.5");
    let (floor, cap) = s.split_once(':').ok_or_else(bad)?;
    let share = |text: &str| text.trim().parse::<f64>().map_err(|_| bad());
    let (floor, cap) = (share(floor)?, share(cap)?);
    if !(0.0..=1.0).contains(&floor) || !(floor..=1.0).contains(&cap) || cap == 0.0 {
        return Err(format!(
            "`{s}`: the floor is from 0 to the cap, and the cap above 0 and up to 1"
        ));
    }
    Ok(TenantShare { floor, cap })
}

fn share_of_all(s: &str) -> Result<f64, String> {
    match s.trim().parse() {
        Ok(share) if share > 0.0 && share <= 1.0 => Ok(share),
        _ => Err(format!("attain={s}: use a share above 0 and up to 1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(duration("1s"), Ok(Nanos(1_000_000_000)));
        assert_eq!(duration("1.5 s"), Ok(Nanos(1_500_000_000)));
        assert_eq!(duration("50ms"), Ok(Nanos(50_000_000)));
        assert_eq!(duration("800us"), duration("800µs"));
        for bad in ["", "1", "s", "1m", "-1s", "0s", "nans", "infs", "1e300s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn tenants_have_floors_and_caps() {
        let two = tenants("0.2:0.5,0:1").unwrap().0;
        assert_eq!((two[0].floor, two[0].cap), (0.2, 0.5));
        assert!(tenants("0.1:1,0.2:1,0.3:1,0.4:1").is_ok());
        for bad in [
            "",
            "0.2",
            "0.2:",
            "0.5:0.2",
            "0:0",
            "-0.1:1",
            "0:1.1",
            "nan:1",
            "0:nan",
            "0.6:1,0.6:1",
        ] {
            assert!(tenants(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_service_level_has_a_bound() {
        let both = slo("ttft=1s,tpot=50ms").unwrap();
        assert_eq!(both, slo("itl=50ms,ttft=1000ms,attain=0.99").unwrap());
        assert_eq!(slo("itl=1ms").unwrap().ttft, None);
        for bad in [
            "",
            "1s",
            "ttft",
            "ttft=1",
            "attain=0.9",
            "ttft=1s,attain=0",
            "ttft=1s,attain=1.1",
            "ttft=1s,attain=nan",
            "ttft=1s,ttft=2s",
            "itl=1s,tpot=2s",
            "e2e=1s",
        ] {
            assert!(slo(bad).is_err(), "{bad}");
        }
    }
}
