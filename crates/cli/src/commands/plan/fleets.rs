//! The fewest devices that keep a service level at a rate: fleets of replicas, replayed.

use std::num::{NonZeroU32, NonZeroUsize};

use plimsoll_device::Device;
use plimsoll_model::ModelSpec;
use plimsoll_plan::{MAX_DEVICES, Question, Verdict, tensor_parallel};
use plimsoll_program::Parallel;
use plimsoll_report::{Fleet, Fleets};
use plimsoll_simulate::Slo;
use plimsoll_simulate::judge::Judge;

use super::demand::Demand;
use super::replay::{Replayer, recorder};
use super::usage;
use crate::args::PlanArgs;
use crate::error::Failure;
use crate::load::Loaded;
use crate::progress::Progress;
use crate::simulated::{Server, Traffic, bounds, in_order};

/// With `--slo`: the fleets that keep it, the best of which `question` is then about.
pub(super) fn choose(
    args: &PlanArgs,
    model: &Loaded,
    question: &mut Question,
    priced: &[(&Device, f64)],
    demand: &Demand<'_>,
) -> Result<Option<Fleets>, Failure> {
    let (Some(slo), Some(rate)) = (args.workload.slo, args.workload.rate) else {
        return Ok(None);
    };
    let devices: Vec<(Device, Option<f64>)> = match &question.device {
        _ if !priced.is_empty() => priced
            .iter()
            .map(|(d, p)| ((*d).clone(), Some(*p)))
            .collect(),
        Some(device) => vec![(device.clone(), None)],
        None => {
            return Err(usage("--slo says nothing without a device")
                .hint("name one with `--gpu h100`, or several with `--price h100=2.99/h`"));
        }
    };
    let target = (rate, slo);
    let found = search(&args.model, &model.spec, question, &devices, demand, target)?;
    match found.chosen {
        Some((device, parallel)) => {
            question.device = Some(device);
            question.parallel = Some(parallel);
        }
        // The plan shows what one replica needs.
        None => question.device = devices.into_iter().next().map(|(d, _)| d),
    }
    Ok(Some(found.fleets))
}

/// Share of a replay by which requests may wait longer at its end than at its start: beyond it a queue grows.
const GROWTH: f64 = 0.01;

/// The fleets tried, and the deployment of the one to be planned.
struct Found {
    fleets: Fleets,
    chosen: Option<(Device, Parallel)>,
}

/// A degree on a device, as one replica.
struct Candidate<'a> {
    device: &'a Device,
    price: Option<f64>,
    tp: u64,
    replayer: Replayer,
}

/// Finds the fewest replicas of `question`'s model for every tensor-parallel degree inside a node, on each of
/// `devices` with its price, and chooses the cheapest of all, or without prices the one with the fewest devices.
///
/// # Errors
/// That of the first degree that cannot be replayed; where nothing fits, nothing is found.
fn search(
    model: &str,
    spec: &ModelSpec,
    question: &Question,
    devices: &[(Device, Option<f64>)],
    demand: &Demand<'_>,
    (rate, slo): (f64, Slo),
) -> Result<Found, Failure> {
    let settings = &question.settings;
    let mut candidates = Vec::new();
    for (device, price) in devices {
        let load = question.load.with_users(1);
        for e in tensor_parallel(spec, device, question.in_use, settings, &load)? {
            let tp = e.deployment.parallel.tp;
            let asked = question.parallel.is_none_or(|p| p.tp == tp);
            if asked && e.verdict > Verdict::No {
                candidates.push(Candidate {
                    device,
                    price: *price,
                    tp,
                    replayer: Replayer::new(model, spec, settings, &e, demand.longest())?,
                });
            }
        }
    }
    let threads = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
    let traffic = demand.traffic()?;
    let crowd = demand.crowd()?;
    let progress = Progress::new();
    let mut tried = in_order(
        &candidates,
        threads,
        |c| c.fewest(demand, &traffic, &crowd, (rate, slo)),
        |done| progress.count(done, candidates.len(), "degrees"),
    )?;
    drop(progress);
    let best = (0..tried.len())
        .filter(|i| tried[*i].attained)
        .min_by(|a, b| order(&tried[*a], &tried[*b]));
    let chosen = best.map(|i| {
        tried[i].chosen = true;
        let parallel = Parallel {
            tp: tried[i].tp,
            dp: tried[i].replicas,
            ..Parallel::default()
        };
        (candidates[i].device.clone(), parallel)
    });
    Ok(Found {
        fleets: Fleets {
            slo: bounds(&slo),
            rate_per_s: rate,
            requests: demand.requests(),
            tried,
        },
        chosen,
    })
}

/// Cheaper first; then fewer devices, more requests within the service level, the lower degree.
fn order(a: &Fleet, b: &Fleet) -> std::cmp::Ordering {
    let price = |f: &Fleet| f.price_per_hour.unwrap_or(0.0);
    price(a)
        .total_cmp(&price(b))
        .then(a.devices.cmp(&b.devices))
        .then(b.slo_share.total_cmp(&a.slo_share))
        .then(a.tp.cmp(&b.tp))
}

impl Candidate<'_> {
    fn fewest(
        &self,
        demand: &Demand<'_>,
        traffic: &Traffic,
        crowd: &Traffic,
        (rate, slo): (f64, Slo),
    ) -> Result<Fleet, Failure> {
        let (tp, replayer) = (self.tp, &self.replayer);
        let most = (MAX_DEVICES / tp).max(1);
        let probe = |n: u64| -> Result<Fleet, Failure> {
            let n = u32::try_from(n).ok().and_then(NonZeroU32::new);
            let n = n.unwrap_or(NonZeroU32::MIN);
            let mut judge = Judge::new(recorder(Some(slo)), slo);
            let server = replayer.replicas(n);
            let (facts, ..) = server.serve(Server::Paged, traffic, &mut judge, None)?;
            let (recorder, verdict) = judge.verdict(GROWTH);
            let run = recorder.run(facts);
            let replicas = u64::from(n.get());
            let devices = replicas * tp;
            Ok(Fleet {
                device: self.device.name.clone(),
                tp,
                replicas,
                devices,
                price_per_hour: self.price.map(|p| p * devices as f64),
                attained: verdict.limited_by.is_none(),
                limited_by: verdict.limited_by,
                slo_share: verdict.share,
                ttft_p99_s: run.latency.ttft.map(|p| p.p99_s),
                inter_token_p99_s: run.latency.inter_token.map(|p| p.p99_s),
                chosen: false,
                command: replayer.command(n, demand),
            })
        };
        // What one replica carries at full load tells about how many are needed.
        let mut full = recorder(None);
        let server = replayer.replicas(NonZeroU32::MIN);
        let (facts, ..) = server.serve(Server::Paged, crowd, &mut full, None)?;
        let full = full.run(facts);
        let guess = (rate / full.requests_per_s.max(f64::MIN_POSITIVE)).ceil();
        fewest((guess as u64).clamp(1, most), most, probe, |f| f.attained)
    }
}

/// The result for the smallest `n` in `1..=most` that is good, though not for `n - 1`; that for `most` where none is.
/// Steps away from `guess`, twice as far each time, and then halves: about twice the logarithm of `most` tries at most.
fn fewest<T, E>(
    guess: u64,
    most: u64,
    mut probe: impl FnMut(u64) -> Result<T, E>,
    good: impl Fn(&T) -> bool,
) -> Result<T, E> {
    let first = probe(guess)?;
    // `low` is not good; `high` is, and `result` is its.
    let (mut low, mut high, mut result);
    let mut step = 1;
    if good(&first) {
        (low, high, result) = (0, guess, first);
        while high > 1 && low == 0 {
            let n = high.saturating_sub(step).max(1);
            let next = probe(n)?;
            if good(&next) {
                (high, result) = (n, next);
                step *= 2;
            } else {
                low = n;
            }
        }
    } else {
        if guess == most {
            return Ok(first);
        }
        // What even the most do not keep needs no steps.
        (low, high, result) = (guess, most, probe(most)?);
        while good(&result) && low + step < high {
            let n = low + step;
            let next = probe(n)?;
            if good(&next) {
                (high, result) = (n, next);
            } else {
                low = n;
                step *= 2;
            }
        }
        if !good(&result) {
            return Ok(result);
        }
    }
    while high - low > 1 {
        let n = low + (high - low) / 2;
        let next = probe(n)?;
        if good(&next) {
            (high, result) = (n, next);
        } else {
            low = n;
        }
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fewest_is_found_from_any_guess_in_few_tries() {
        for most in [1, 2, 7, 64] {
            for needed in 1..=most + 1 {
                for guess in 1..=most {
                    let mut tries = Vec::new();
                    let probe = |n| -> Result<u64, ()> {
                        tries.push(n);
                        Ok(n)
                    };
                    let found = fewest(guess, most, probe, |n| *n >= needed).unwrap();
                    assert_eq!(found, needed.min(most));
                    assert!(tries.len() <= 14, "{tries:?}");
                    let mut once = tries.clone();
                    once.sort_unstable();
                    once.dedup();
                    assert_eq!(once.len(), tries.len(), "{tries:?}");
                }
            }
        }
    }

    #[test]
    fn the_cheapest_goes_first() {
        let fleet = |tp, devices, price, slo_share| Fleet {
            device: String::new(),
            tp,
            replicas: devices / tp,
            devices,
            price_per_hour: price,
            attained: true,
            limited_by: None,
            slo_share,
            ttft_p99_s: None,
            inter_token_p99_s: None,
            chosen: false,
            command: None,
        };
        let sorted = [
            fleet(1, 8, Some(4.0), 0.99),
            fleet(1, 2, Some(5.0), 0.99),
            fleet(2, 4, Some(5.0), 1.0),
            fleet(1, 4, Some(5.0), 0.99),
            fleet(4, 4, Some(5.0), 0.99),
        ];
        for pair in sorted.windows(2) {
            assert_eq!(order(&pair[0], &pair[1]), std::cmp::Ordering::Less);
        }
    }
}
