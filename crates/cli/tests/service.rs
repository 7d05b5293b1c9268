//! Service levels and tenants of `plimsoll simulate`, and runs on several threads.

#![allow(clippy::unwrap_used, reason = "helpers of tests are not seen as tests")]

mod simulating;

use serde_json::Value;
use simulating::{json, refused, run, text, words};

#[test]
fn a_service_level_is_judged_over_all_requests() {
    let flags = "llama-13b --workload sharegpt:rate=16 --requests 200 --kv-memory 4GiB --slo ttft=2s,itl=40ms";
    let args = [&words(flags)[..], &["--servers", "paged,orca-max"]].concat();
    let report = json(&args);
    let slo = &report["setup"]["slo"];
    assert_eq!(
        (&slo["ttft_s"], &slo["per_token_s"], &slo["attain"]),
        (&2.0.into(), &0.04.into(), &0.99.into())
    );
    let share = |i: usize| report["runs"][i]["goodput"]["share"].as_f64().unwrap();
    assert!(
        share(0) > share(1) && share(1) < 0.5,
        "{} {}",
        share(0),
        share(1)
    );
    assert_eq!(report["runs"][1]["goodput"]["attained"], false);
    let table = text(&args);
    assert!(
        table.contains("Service level: the first token within 2 s, later tokens within 40 ms each, for 99 % of the requests"),
        "{table}"
    );
    assert!(
        table.contains("within SLO") && table.contains("SLO attained"),
        "{table}"
    );
    // A bound that none breaks, and a share that any number of requests reaches.
    let loose = json(&[&words(flags)[..7], &["--slo", "tpot=1s,attain=0.5"]].concat());
    assert_eq!(loose["setup"]["slo"]["ttft_s"], Value::Null);
    assert_eq!(loose["runs"][0]["goodput"]["attained"], true);

    // All are refused: none is kept.
    let args = words("llama-13b --requests 20 --json --slo ttft=999s --kv-memory 26MiB");
    let out = run(&args);
    assert_eq!(out.status.code(), Some(3));
    let report: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(report["runs"][0]["goodput"]["share"], 0.0);
    assert_eq!(report["runs"][0]["goodput"]["attained"], false);
}

#[test]
fn threads_change_nothing() {
    let args = words("llama-13b --requests 40 --json --threads");
    let with = |n: &'static str| text(&[&args[..], &[n]].concat());
    assert_eq!(with("1"), with("4"));
}

#[test]
fn a_tenant_is_sure_of_its_floor_and_never_exceeds_its_cap() {
    // Tenant 0 sends seven of eight requests, more than the pool can take.
    let base = "llama-13b --servers paged --kv-memory 4GiB --max-model-len 1k --requests 160 --slo ttft=5s \
                --workload synthetic:in=300,out=100,rate=20,tenants=weights(7,1)";
    let with = |flags: &str| json(&words(&format!("{base} {flags}")));
    let wait = |r: &Value, tenant: usize| {
        r["runs"][0]["tenants"][tenant]["ttft_mean_s"]
            .as_f64()
            .unwrap()
    };
    let (free, fair) = (with(""), with("--tenants 0:0.7,0.3:1"));
    assert!(
        wait(&fair, 1) < 0.5 * wait(&free, 1),
        "{} {}",
        wait(&fair, 1),
        wait(&free, 1)
    );
    assert!(wait(&fair, 0) > wait(&free, 0));
    let policies = fair["runs"][0]["policies"].as_array().unwrap();
    assert_eq!(policies.last().unwrap()["value"], "0 to 0.7, 0.3 to 1");
    // Tenant 1 alone could not fill the pool of the cap, so all is refused to it.
    let capped = with("--tenants 0:1,0:0.01");
    assert_eq!(capped["runs"][0]["tenants"].as_array().unwrap().len(), 1);
    let table = text(&words(&format!("{base} --tenants 0:0.7,0.3:1")));
    assert!(
        table.contains("tenant 1, finished") && table.contains("  first token, mean"),
        "{table}"
    );
    refused(
        "--tenants 0:1,0:1",
        2,
        "--tenants names 2 tenants, and the workload has 1",
    );
    refused("--tenants 0.2", 2, "is no FLOOR:CAP");
    refused("--tenants 0.6:1,0.6:1", 2, "the floors add up to");
}
