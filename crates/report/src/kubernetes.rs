//! A plan as a Kubernetes manifest: a Deployment with a pod for each replica, and a Service before them.
//!
//! Source: Kubernetes API reference, apps/v1 Deployment and v1 Service; its page on device plugins for resource names.

use plimsoll_device::Device;

use crate::launch::Launch;
use crate::wire::PlanReport;
use crate::yaml::Yaml;

/// Most devices of one pod: those of a node.
const NODE: u64 = 8;
/// Seconds that a server has before it must be ready, beside what reading its weights takes.
const START_S: u64 = 600;
/// Bytes of weights that are read or downloaded in a second, at the least: what a gigabit link brings.
const READ_PER_S: u64 = 100_000_000;
/// Seconds between two looks at a pod.
const PERIOD_S: u64 = 10;
/// Where servers listen.
const PORT: u64 = 8000;
/// Where models are downloaded to, whoever the image runs as.
const MODELS: &str = "/models";
/// Where servers say that they take requests.
const READY_PATH: &str = "/health";

/// What a manifest needs besides a plan.
pub struct Pod<'a> {
    /// The server's start, of one replica.
    pub launch: &'a Launch,
    /// The kind of device.
    pub device: &'a Device,
    /// The container image; `None` for the engine's own.
    pub image: Option<&'a str>,
}

/// The manifest of `report`.
///
/// # Errors
/// Why it cannot be written as one, as a sentence.
pub fn manifest(report: &PlanReport, pod: &Pod<'_>) -> Result<String, String> {
    let p = report.answer.parallel;
    let devices = p.tp.saturating_mul(p.pp);
    let Some(device) = &report.device else {
        return Err("a manifest asks for devices, and the plan names none".to_owned());
    };
    if devices > NODE {
        return Err(format!(
            "a replica of {devices} devices spans nodes, and a pod does not"
        ));
    }
    if p.ep > 1 && p.dp > 1 {
        return Err(
            "experts dealt out over replicas tie them together, and pods are apart".to_owned(),
        );
    }
    if report
        .ranks
        .iter()
        .any(|r| r.device.as_ref() != Some(&device.name))
    {
        return Err("devices of several kinds are no resource that a pod can ask for".to_owned());
    }
    let resource = resource(pod.device)?;
    let image = match pod.image {
        Some(image) => image.to_owned(),
        None => image_of(report)?,
    };
    let name = label(&report.model.name);
    let labels = || Yaml::Map(vec![("app.kubernetes.io/name", Yaml::text(name.clone()))]);
    let spec = Yaml::Map(vec![
        ("replicas", Yaml::Number(p.dp)),
        ("selector", Yaml::Map(vec![("matchLabels", labels())])),
        // A new pod finds no devices while the old one has them.
        (
            "strategy",
            Yaml::Map(vec![("type", Yaml::text("Recreate"))]),
        ),
        (
            "template",
            Yaml::Map(vec![
                ("metadata", Yaml::Map(vec![("labels", labels())])),
                (
                    "spec",
                    pod_spec(report, pod, &image, resource.map(|r| (r, devices))),
                ),
            ]),
        ),
    ]);
    let deployment = Yaml::Map(vec![
        ("apiVersion", Yaml::text("apps/v1")),
        ("kind", Yaml::text("Deployment")),
        (
            "metadata",
            Yaml::Map(vec![
                ("name", Yaml::text(name.clone())),
                ("labels", labels()),
                ("annotations", annotations(report, &device.name)),
            ]),
        ),
        ("spec", spec),
    ]);
    let service = Yaml::Map(vec![
        ("apiVersion", Yaml::text("v1")),
        ("kind", Yaml::text("Service")),
        (
            "metadata",
            Yaml::Map(vec![
                ("name", Yaml::text(name.clone())),
                ("labels", labels()),
            ]),
        ),
        (
            "spec",
            Yaml::Map(vec![
                ("selector", labels()),
                (
                    "ports",
                    Yaml::List(vec![Yaml::Map(vec![
                        ("name", Yaml::text("http")),
                        ("port", Yaml::Number(PORT)),
                        ("targetPort", Yaml::text("http")),
                    ])]),
                ),
            ]),
        ),
    ]);
    Ok(format!(
        "{}---\n{}",
        deployment.document(),
        service.document()
    ))
}

/// What the plan says, for whoever finds the pod.
fn annotations(report: &PlanReport, device: &str) -> Yaml {
    let a = &report.answer;
    Yaml::Map(vec![
        ("plimsoll/plan", Yaml::text(a.text.clone())),
        ("plimsoll/engine", Yaml::text(report.engine.text())),
        ("plimsoll/device", Yaml::text(device)),
        (
            "plimsoll/kv-cache-bytes-per-device",
            Yaml::text(report.kv.pool_bytes.to_string()),
        ),
        (
            "plimsoll/kv-cache-tokens",
            Yaml::text(report.kv.tokens.to_string()),
        ),
        ("plimsoll/max-users", Yaml::text(a.max_users.to_string())),
    ])
}

fn pod_spec(
    report: &PlanReport,
    pod: &Pod<'_>,
    image: &str,
    devices: Option<(String, u64)>,
) -> Yaml {
    let (program, arguments) = match pod.launch.words() {
        [program, rest @ ..] => (program.clone(), rest.to_vec()),
        [] => (String::new(), Vec::new()),
    };
    let mut arguments: Vec<Yaml> = arguments.into_iter().map(Yaml::Text).collect();
    // Others in the cluster reach it, which our own server and llama.cpp allow only when told.
    for word in ["--host", "0.0.0.0", "--port", &PORT.to_string()] {
        arguments.push(Yaml::text(word));
    }
    let seconds = START_S.saturating_add(report.model.stored_bytes / READ_PER_S);
    let engine = pod.launch.engine();
    let probe = |path: &str, failures: u64| {
        Yaml::Map(vec![
            (
                "httpGet",
                Yaml::Map(vec![
                    ("path", Yaml::text(path)),
                    ("port", Yaml::text("http")),
                ]),
            ),
            ("periodSeconds", Yaml::Number(PERIOD_S)),
            ("timeoutSeconds", Yaml::Number(5)),
            ("failureThreshold", Yaml::Number(failures)),
        ])
    };
    let container = Yaml::Map(vec![
        ("name", Yaml::text("server")),
        ("image", Yaml::text(image)),
        ("command", Yaml::List(vec![Yaml::Text(program)])),
        ("args", Yaml::List(arguments)),
        ("env", environment(engine)),
        (
            "ports",
            Yaml::List(vec![Yaml::Map(vec![
                ("name", Yaml::text("http")),
                ("containerPort", Yaml::Number(PORT)),
            ])]),
        ),
        ("resources", resources(report, devices)),
        (
            "startupProbe",
            probe(READY_PATH, seconds.div_ceil(PERIOD_S)),
        ),
        ("readinessProbe", probe(READY_PATH, 1)),
        ("livenessProbe", probe(live_path(engine), 6)),
        (
            "volumeMounts",
            Yaml::List(vec![mount("shm", "/dev/shm"), mount("models", MODELS)]),
        ),
    ]);
    Yaml::Map(vec![
        ("containers", Yaml::List(vec![container])),
        (
            "volumes",
            Yaml::List(vec![
                // Ranks meet in shared memory, of which a container has 64 MiB otherwise.
                Yaml::Map(vec![
                    ("name", Yaml::text("shm")),
                    (
                        "emptyDir",
                        Yaml::Map(vec![("medium", Yaml::text("Memory"))]),
                    ),
                ]),
                Yaml::Map(vec![
                    ("name", Yaml::text("models")),
                    ("emptyDir", Yaml::Map(vec![])),
                ]),
            ]),
        ),
    ])
}

/// Where models go, and secrets: the hub's token where there is one, and the key without which our server does not listen to others.
fn environment(engine: &str) -> Yaml {
    let models = Yaml::Map(vec![
        ("name", Yaml::text("HF_HOME")),
        ("value", Yaml::text(MODELS)),
    ]);
    let mut out = vec![models, secret("HF_TOKEN", "hf-token", "token", true)];
    if engine == "plimsoll" {
        out.push(secret("PLIMSOLL_API_KEY", "plimsoll", "api-key", false));
    }
    Yaml::List(out)
}

fn secret(variable: &str, name: &str, key: &str, optional: bool) -> Yaml {
    let from = Yaml::Map(vec![
        ("name", Yaml::text(name)),
        ("key", Yaml::text(key)),
        ("optional", Yaml::Bool(optional)),
    ]);
    Yaml::Map(vec![
        ("name", Yaml::text(variable)),
        ("valueFrom", Yaml::Map(vec![("secretKeyRef", from)])),
    ])
}

fn mount(name: &str, path: &str) -> Yaml {
    Yaml::Map(vec![
        ("name", Yaml::text(name)),
        ("mountPath", Yaml::text(path)),
    ])
}

/// Devices, and the memory of the host as far as the plan counts it.
fn resources(report: &PlanReport, devices: Option<(String, u64)>) -> Yaml {
    let mut limits = Vec::new();
    let mut requests = Vec::new();
    match devices {
        Some((name, n)) => {
            limits.push((name, Yaml::Number(n)));
            let host: u64 = report
                .ranks
                .iter()
                .flat_map(|r| r.host_terms.iter().filter(|t| t.region != "swap_file"))
                .map(|t| t.bytes)
                .fold(0, u64::saturating_add);
            if host > 0 {
                requests.push(("memory".to_owned(), Yaml::text(host.to_string())));
            }
        }
        // On processors the device's memory is the host's, and the plan all that the process takes.
        None => {
            if let Some(d) = &report.device {
                limits.push(("memory".to_owned(), Yaml::text(d.usable_bytes.to_string())));
                requests.push(("memory".to_owned(), Yaml::text(d.usable_bytes.to_string())));
            }
        }
    }
    Yaml::Map(vec![
        ("limits", Yaml::Found(limits)),
        ("requests", Yaml::Found(requests)),
    ])
}

/// The name under which a device plugin offers a kind of device; `None` for processors.
fn resource(device: &Device) -> Result<Option<String>, String> {
    // A slice of a card has a name of its own: h100-80g-sxm:3g.40gb.
    let slice = device.name.split_once(':').map(|(_, profile)| profile);
    let name = match (device.vendor.as_str(), slice) {
        ("cpu", _) => return Ok(None),
        ("nvidia", Some(profile)) => format!("nvidia.com/mig-{profile}"),
        ("nvidia", None) => "nvidia.com/gpu".to_owned(),
        ("amd", _) => "amd.com/gpu".to_owned(),
        ("intel", _) if device.arch.starts_with("gaudi") => "habana.ai/gaudi".to_owned(),
        ("intel", _) => "gpu.intel.com/xe".to_owned(),
        ("google", _) => "google.com/tpu".to_owned(),
        ("aws", _) => "aws.amazon.com/neuron".to_owned(),
        (vendor, _) => return Err(format!("no device plugin is known for devices of {vendor}")),
    };
    Ok(Some(name))
}

/// The image that an engine's authors publish for the release that was planned.
fn image_of(report: &PlanReport) -> Result<String, String> {
    match (report.engine.name.as_str(), &report.engine.version) {
        ("vllm", Some(v)) => Ok(format!("vllm/vllm-openai:v{v}")),
        ("sglang", Some(v)) => Ok(format!("lmsysorg/sglang:v{v}")),
        (engine, _) => Err(format!(
            "no image of {engine} is known by name: `--image` names one"
        )),
    }
}

/// Where a server says that it lives, be it that it takes no requests now.
fn live_path(engine: &str) -> &'static str {
    match engine {
        "plimsoll" => "/health/live",
        _ => READY_PATH,
    }
}

/// A name that Kubernetes takes (RFC 1123, 63 characters) of a model's.
fn label(model: &str) -> String {
    let mut out = String::new();
    for c in model.rsplit('/').next().unwrap_or(model).chars() {
        let c = c.to_ascii_lowercase();
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.ends_with('-') && !out.is_empty() {
            out.push('-');
        }
        if out.len() == 63 {
            break;
        }
    }
    let out = out.trim_end_matches('-');
    // A Service's name begins with a letter.
    if out.starts_with(|c: char| c.is_ascii_lowercase()) {
        out.to_owned()
    } else {
        let mut named = format!("model-{out}");
        named.truncate(63);
        named.trim_end_matches('-').to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::label;

    #[test]
    fn names_are_those_of_kubernetes() {
        assert_eq!(label("meta-llama/Llama-3.1-8B"), "llama-3-1-8b");
        assert_eq!(label("./My Model_7B/"), "model");
        assert_eq!(label("0xAI"), "model-0xai");
        assert_eq!(label(&"a.".repeat(80)).len(), 63);
        assert!(!label(&"a.".repeat(80)).ends_with('-'));
    }
}
