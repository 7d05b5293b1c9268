//! Writes small model files for tests: GGUF and safetensors, right or broken on purpose.
//!
//! Shared by the tests of this crate, those of `plimsoll-host` and the maker of fuzz seeds.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    reason = "each test includes it and uses a part"
)]

/// A GGUF file under construction.
#[derive(Clone, Debug)]
pub struct Gguf {
    pub version: u32,
    keys: Vec<Vec<u8>>,
    tensors: Vec<Vec<u8>>,
    pub alignment: u64,
    data: u64,
    /// In place of the true counts.
    pub tensor_count: Option<u64>,
    pub key_count: Option<u64>,
}

/// The bytes of a string with its length.
pub fn string(s: &[u8]) -> Vec<u8> {
    let mut out = (s.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(s);
    out
}

impl Default for Gguf {
    fn default() -> Self {
        Self {
            version: 3,
            keys: Vec::new(),
            tensors: Vec::new(),
            alignment: 32,
            data: 0,
            tensor_count: None,
            key_count: None,
        }
    }
}

impl Gguf {
    /// A key with the number of its type and its bytes.
    pub fn raw(mut self, key: &[u8], kind: u32, value: &[u8]) -> Self {
        let mut out = string(key);
        out.extend(kind.to_le_bytes());
        out.extend(value);
        self.keys.push(out);
        self
    }

    pub fn str(self, key: &str, value: &str) -> Self {
        self.raw(key.as_bytes(), 8, &string(value.as_bytes()))
    }

    pub fn u32(self, key: &str, value: u32) -> Self {
        self.raw(key.as_bytes(), 4, &value.to_le_bytes())
    }

    pub fn u16(self, key: &str, value: u16) -> Self {
        self.raw(key.as_bytes(), 2, &value.to_le_bytes())
    }

    pub fn f32(self, key: &str, value: f32) -> Self {
        self.raw(key.as_bytes(), 6, &value.to_le_bytes())
    }

    /// An array of elements given as bytes, with a length of its own choice.
    pub fn array(self, key: &str, element: u32, len: u64, bytes: &[u8]) -> Self {
        let mut out = element.to_le_bytes().to_vec();
        out.extend(len.to_le_bytes());
        out.extend(bytes);
        self.raw(key.as_bytes(), 9, &out)
    }

    pub fn u32s(self, key: &str, values: &[u32]) -> Self {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.array(key, 4, values.len() as u64, &bytes)
    }

    pub fn strings(self, key: &str, count: u64, each: impl Fn(u64) -> String) -> Self {
        let bytes: Vec<u8> = (0..count)
            .flat_map(|i| string(each(i).as_bytes()))
            .collect();
        self.array(key, 8, count, &bytes)
    }

    /// A tensor, its data after that of the last; the shape is innermost first. Types: 0 f32,
    /// 1 f16, 2 q4_0.
    pub fn tensor(mut self, name: &str, shape: &[u64], kind: u32) -> Self {
        let n: u64 = shape.iter().product();
        let bytes = match kind {
            0 => n * 4,
            1 => n * 2,
            _ => n / 32 * 18,
        };
        let begin = self.data;
        self.data = (begin + bytes).next_multiple_of(self.alignment);
        self.raw_tensor(name.as_bytes(), shape, kind, begin)
    }

    pub fn raw_tensor(mut self, name: &[u8], shape: &[u64], kind: u32, begin: u64) -> Self {
        let mut out = string(name);
        out.extend((shape.len() as u32).to_le_bytes());
        out.extend(shape.iter().flat_map(|d| d.to_le_bytes()));
        out.extend(kind.to_le_bytes());
        out.extend(begin.to_le_bytes());
        self.tensors.push(out);
        self
    }

    /// A tensor's entry as bytes, and how many bytes of data it gets.
    pub fn raw_entry(mut self, entry: &[u8], data: u64) -> Self {
        self.tensors.push(entry.to_vec());
        self.data += data;
        self
    }

    /// The header alone.
    pub fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend(
            self.tensor_count
                .unwrap_or(self.tensors.len() as u64)
                .to_le_bytes(),
        );
        out.extend(
            self.key_count
                .unwrap_or(self.keys.len() as u64)
                .to_le_bytes(),
        );
        out.extend(self.keys.iter().flatten());
        out.extend(self.tensors.iter().flatten());
        out
    }

    /// The whole file, its data zero.
    pub fn file(&self) -> Vec<u8> {
        let mut out = self.header();
        let start = out.len().next_multiple_of(self.alignment as usize);
        out.resize(start + self.data as usize, 0);
        out
    }

    /// The keys that every decoder has.
    pub fn decoder(arch: &str, layers: u32, hidden: u32, heads: u32, kv: u32, ffn: u32) -> Self {
        Self::default()
            .str("general.architecture", arch)
            .str("general.name", "test")
            .u32(&format!("{arch}.block_count"), layers)
            .u32(&format!("{arch}.context_length"), 128)
            .u32(&format!("{arch}.embedding_length"), hidden)
            .u32(&format!("{arch}.feed_forward_length"), ffn)
            .u32(&format!("{arch}.attention.head_count"), heads)
            .u32(&format!("{arch}.attention.head_count_kv"), kv)
    }

    /// A LLaMA with all its tensors: two layers, hidden 64, 4 heads, 2 KV heads, 96 words.
    pub fn llama() -> Self {
        let mut g = Self::decoder("llama", 2, 64, 4, 2, 128)
            .strings("tokenizer.ggml.tokens", 96, |i| format!("t{i}"))
            .tensor("token_embd.weight", &[64, 96], 2)
            .tensor("output.weight", &[64, 96], 2)
            .tensor("output_norm.weight", &[64], 0);
        for i in 0..2 {
            for (name, shape, kind) in [
                ("attn_norm", &[64][..], 0),
                ("attn_q", &[64, 64], 2),
                ("attn_k", &[64, 32], 2),
                ("attn_v", &[64, 32], 1),
                ("attn_output", &[64, 64], 2),
                ("ffn_norm", &[64], 0),
                ("ffn_gate", &[64, 128], 2),
                ("ffn_up", &[64, 128], 2),
                ("ffn_down", &[128, 64], 2),
            ] {
                g = g.tensor(&format!("blk.{i}.{name}.weight"), shape, kind);
            }
        }
        g
    }
}

/// A safetensors file of zeros: name, type, shape and bytes of each tensor.
pub fn safetensors(tensors: &[(&str, &str, &[u64], u64)]) -> Vec<u8> {
    let mut begin = 0;
    let mut parts = Vec::new();
    for (name, dtype, shape, bytes) in tensors {
        parts.push(format!(
            r#""{name}":{{"dtype":"{dtype}","shape":{shape:?},"data_offsets":[{begin},{}]}}"#,
            begin + bytes
        ));
        begin += bytes;
    }
    safetensors_raw(&format!("{{{}}}", parts.join(",")), begin)
}

/// A safetensors file with this header and so much data.
pub fn safetensors_raw(json: &str, data: u64) -> Vec<u8> {
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(json.as_bytes());
    out.resize(out.len() + data as usize, 0);
    out
}

/// The config and, under the names of its checkpoint, the tensors of a LLaMA of two layers.
pub const LLAMA_CONFIG: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama",
"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
"num_key_value_heads": 2, "vocab_size": 96, "max_position_embeddings": 128,
"tie_word_embeddings": false, "torch_dtype": "float16"}"#;

/// Tensors of [`LLAMA_CONFIG`], by layer: `None` for those outside.
pub fn llama_tensors() -> Vec<(String, Vec<u64>)> {
    let mut out = vec![("model.embed_tokens.weight".to_owned(), vec![96, 64])];
    for i in 0..2 {
        for (name, shape) in [
            ("self_attn.q_proj", vec![64, 64]),
            ("self_attn.k_proj", vec![32, 64]),
            ("self_attn.v_proj", vec![32, 64]),
            ("self_attn.o_proj", vec![64, 64]),
            ("mlp.gate_proj", vec![128, 64]),
            ("mlp.up_proj", vec![128, 64]),
            ("mlp.down_proj", vec![64, 128]),
            ("input_layernorm", vec![64]),
            ("post_attention_layernorm", vec![64]),
        ] {
            out.push((format!("model.layers.{i}.{name}.weight"), shape));
        }
    }
    out.push(("model.norm.weight".to_owned(), vec![64]));
    out.push(("lm_head.weight".to_owned(), vec![96, 64]));
    out
}

/// A file of `tensors` in 16-bit floats.
pub fn f16_file(tensors: &[(String, Vec<u64>)]) -> Vec<u8> {
    let list: Vec<(&str, &str, &[u64], u64)> = tensors
        .iter()
        .map(|(n, s)| {
            (
                n.as_str(),
                "F16",
                s.as_slice(),
                2 * s.iter().product::<u64>(),
            )
        })
        .collect();
    safetensors(&list)
}
