//! What `--kv-cache-dtype auto` means where a checkpoint asks for a type of its keys and values.
//!
//! Sources: vLLM `utils/torch_utils.py` (`resolve_kv_cache_dtype_string`, which `engine/arg_utils.py` calls) for ModelOpt's
//! checkpoints: in 0.14.0, not in 0.13.0. `model_executor/layers/attention/attention.py`, before 0.16 `attention/layer.py`
//! (`Attention.__init__`), for compressed-tensors' `kv_cache_scheme`: in 0.15.0, not in 0.14.0, and not for latent attention
//! (`MLAAttention`). Read in 0.11.0 to 0.24.0, 0.28.0 and 0.32.0. Up to 0.21 the latter overrides a type that is given, too.

use plimsoll_model::{Mixer, ModelSpec};
use plimsoll_units::DType;

use super::{Engine, Version};
use crate::settings::{KvType, Settings};

/// From here on for ModelOpt's checkpoints.
const MODELOPT: Version = Version::new(0, 14);
/// From here on for compressed-tensors' checkpoints.
const COMPRESSED: Version = Version::new(0, 15);
/// From here on a type that is given comes before compressed-tensors'.
const GIVEN_FIRST: Version = Version::new(0, 22);

/// The type of cached keys and values that an engine takes: the one that is given, or what its `auto` makes of the
/// checkpoint.
pub(crate) fn served_kv(settings: &Settings, spec: &ModelSpec) -> KvType {
    let (Engine::Vllm(version), Some(quant)) = (settings.engine, &spec.quant) else {
        return settings.kv_type;
    };
    if !quant.extras.kv_fp8 {
        return settings.kv_type;
    }
    let auto = settings.kv_type == KvType::Auto;
    let latent = || {
        spec.layers
            .iter()
            .any(|l| matches!(l.mixer, Mixer::Latent(_)))
    };
    let follows = if quant.method.starts_with("modelopt") {
        auto && version >= MODELOPT
    } else {
        version >= COMPRESSED && (auto || version < GIVEN_FIRST) && !latent()
    };
    if follows {
        KvType::Plain(DType::F8E4m3)
    } else {
        settings.kv_type
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_device::find;
    use plimsoll_model::{Assume, catalogue, from_config};
    use plimsoll_program::Parallel;
    use plimsoll_units::Bytes;
    use serde_json::{Value, json};

    use crate::evaluate::evaluate;
    use crate::settings::{Deployment, Load};

    fn spec(model: &str, q: &Value) -> ModelSpec {
        let mut config = catalogue::find(model).expect(model).config.clone();
        config["quantization_config"] = q.clone();
        from_config(&config, Assume::Nothing).expect(model)
    }

    fn kv(model: &str, q: &Value, version: &str, given: KvType) -> KvType {
        let version = version.parse().expect("a version");
        let settings = Settings {
            kv_type: given,
            ..Settings::new(Engine::Vllm(version))
        };
        served_kv(&settings, &spec(model, q))
    }

    const FP8: KvType = KvType::Plain(DType::F8E4m3);
    const WIDE: KvType = KvType::Plain(DType::Bf16);

    #[test]
    fn modelopts_type_is_followed_from_0_14_on() {
        let parts = |dynamic: Value| {
            json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"],
            "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": dynamic}})
        };
        let named =
            json!({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"});
        for (q, version, given, then) in [
            (&named, "0.13.0", KvType::Auto, KvType::Auto),
            (&named, "0.14.0", KvType::Auto, FP8),
            (&named, "0.32.0", KvType::Auto, FP8),
            (&named, "0.19.0", WIDE, WIDE),
            (&parts(json!(false)), "0.14.0", KvType::Auto, FP8),
            (&parts(Value::Null), "0.14.0", KvType::Auto, KvType::Auto),
        ] {
            assert_eq!(kv("qwen3-0.6b", q, version, given), then, "{q} {version}");
        }
        assert_eq!(
            kv("deepseek-v3", &named, "0.14.0", KvType::Auto),
            FP8,
            "latents too"
        );
        let sglang = Settings::new(Engine::Sglang(Version::new(0, 5)));
        assert_eq!(
            served_kv(&sglang, &spec("qwen3-0.6b", &named)),
            KvType::Auto
        );
        let other =
            json!({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "INT8"});
        assert_eq!(
            kv("qwen3-0.6b", &other, "0.32.0", KvType::Auto),
            KvType::Auto
        );
    }

    #[test]
    fn compressed_tensors_scheme_is_followed_from_0_15_on() {
        let q = json!({"quant_method": "compressed-tensors", "format": "float-quantized", "ignore": ["lm_head"],
            "config_groups": {"group_0": {"targets": ["Linear"], "input_activations": null,
                "weights": {"num_bits": 8, "type": "float", "strategy": "channel", "symmetric": true}}},
            "kv_cache_scheme": {"num_bits": 8, "type": "float", "strategy": "tensor"}});
        for (version, given, then) in [
            ("0.14.0", KvType::Auto, KvType::Auto),
            ("0.15.0", KvType::Auto, FP8),
            ("0.21.0", WIDE, FP8),
            ("0.22.0", WIDE, WIDE),
            ("0.22.0", KvType::Auto, FP8),
        ] {
            assert_eq!(kv("qwen3-0.6b", &q, version, given), then, "{version}");
        }
        assert_eq!(
            kv("deepseek-v3", &q, "0.19.0", KvType::Auto),
            KvType::Auto,
            "not latents"
        );
    }

    #[test]
    fn a_plan_has_the_type_and_says_why() {
        let q =
            json!({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"});
        let spec = spec("qwen3-0.6b", &q);
        let device = find("h100-80g-sxm").expect("a card");
        let need = |version: Version| {
            let deployment = Deployment {
                device: device.clone(),
                kinds: None,
                parallel: Parallel::default(),
                in_use: Bytes::ZERO,
            };
            let settings = Settings::new(Engine::Vllm(version));
            let e = evaluate(&spec, &deployment, &settings, &Load::plain(1, 4096)).expect("a plan");
            let said = e.stages[0]
                .notes
                .iter()
                .any(|n| n.contains("asks for keys and values"));
            (e.stages[0].need.pool, said)
        };
        let (wide, narrow) = (need(Version::new(0, 13)), need(Version::new(0, 14)));
        assert_eq!((wide.1, narrow.1), (false, true));
        assert_eq!(wide.0.get(), 2 * narrow.0.get());
    }
}
