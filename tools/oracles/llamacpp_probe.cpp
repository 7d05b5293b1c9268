// Asks llama.cpp what it would allocate for a GGUF header, without allocating or running anything.
//
// It loads the model with `no_alloc` (metadata and tensor shapes only), builds a context, and prints as one JSON line
// what llama.cpp's own accounting says: model, context (KV and recurrent) and compute bytes per buffer type.
// With --gpus N it registers N pretend accelerators that behave towards the graph scheduler as CUDA devices do
// (own memory, 128-byte alignment, pinned host buffer, every operation supported, quantised rows padded to 512), so
// that the host/device split of every figure can be seen on a machine without one. They cannot compute.
// With --peak it also prints which tensors of the graph are alive when the single-device compute buffer is fullest,
// found by replaying the allocator's lifetime rules over the worst-case graph.
//
// Build: see llamacpp_memory.py (links against libllama and libggml of the tree that is being asked; uses its
// internal headers for the parts of the KV cache, so it belongs to one llama.cpp version).

#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-impl.h"
#include "llama-ext.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"
#include "llama-memory-hybrid-iswa.h"
#include "llama-memory-hybrid.h"
#include "llama-memory-recurrent.h"
#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

// ---- pretend accelerators -------------------------------------------------------------------------------------

static bool fa_f16_copy = false; // CUDA late 2026: flash attention's f16 copies of quantised K/V live in the compute buffer
static bool fa_supported = true;

struct pretend {
    std::string              name;
    ggml_backend_device      dev;
    ggml_backend_buffer_type buft;
};
static std::vector<pretend *>   pretends;
static ggml_backend_reg         pretend_reg;
static ggml_backend_buffer_type pretend_host;

static const ggml_backend_buffer_i pretend_buffer_iface = {
    [](ggml_backend_buffer_t) {},
    [](ggml_backend_buffer_t) { return (void *) 0x1000; },
    nullptr,
    [](ggml_backend_buffer_t, ggml_tensor *, uint8_t, size_t, size_t) {},
    [](ggml_backend_buffer_t, ggml_tensor *, const void *, size_t, size_t) {},
    [](ggml_backend_buffer_t, const ggml_tensor *, void *, size_t, size_t) {},
    nullptr, nullptr, nullptr,
    [](ggml_backend_buffer_t, uint8_t) {},
    nullptr,
};

static const char * pretend_buft_name(ggml_backend_buffer_type_t b) { return ((pretend *) b->context)->name.c_str(); }

static size_t pretend_alloc_size(ggml_backend_buffer_type_t, const ggml_tensor * t) {
    size_t size = ggml_nbytes(t);
    if (fa_f16_copy && t->op == GGML_OP_FLASH_ATTN_EXT) {
        const ggml_tensor * k = t->src[1];
        const ggml_tensor * v = t->src[2];
        const bool same = v->view_src && (v->view_src == k || v->view_src == k->view_src);
        if (k->type != GGML_TYPE_F16) size = GGML_PAD(size, 128) + ggml_nelements(k)*2;
        if (v->type != GGML_TYPE_F16 && !same) size = GGML_PAD(size, 128) + ggml_nelements(v)*2;
    }
    if (ggml_is_quantized(t->type) && t->ne[0] % 512 != 0) {
        size += ggml_row_size(t->type, 512 - t->ne[0] % 512);
    }
    return size;
}

static bool pretend_supports_op(ggml_backend_dev_t dev, const ggml_tensor * op) {
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        const ggml_tensor * s = op->src[i];
        if (s && s->buffer) {
            for (auto * p : pretends) {
                if (s->buffer->buft == &p->buft && &p->dev != dev) return false;
            }
        }
    }
    if (op->op == GGML_OP_FLASH_ATTN_EXT) return fa_supported;
    return true;
}

static int64_t pretend_op_rows(const ggml_tensor * op) {
    switch (op->op) {
        case GGML_OP_GET_ROWS:   return 0;
        case GGML_OP_MUL_MAT:    return op->ne[1];
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_ROPE:       return op->ne[2];
        default:                 return ggml_nrows(op);
    }
}

static const ggml_backend_i pretend_backend_iface = {
    [](ggml_backend_t b) { return ((pretend *) b->device->context)->name.c_str(); },
    [](ggml_backend_t b) { delete b; },
    nullptr, nullptr, nullptr, nullptr, nullptr,
    [](ggml_backend_t) {},
    nullptr, nullptr, nullptr, nullptr,
    [](ggml_backend_t, ggml_cgraph *) { return GGML_STATUS_FAILED; },
    [](ggml_backend_t, ggml_backend_event_t) {},
    [](ggml_backend_t, ggml_backend_event_t) {},
    nullptr,
};

static ggml_backend_t pretend_init(ggml_backend_dev_t dev, const char *) {
    static uint8_t guid[16] = {7};
    auto * b = new ggml_backend();
    b->guid = (ggml_guid_t) &guid;
    b->iface = pretend_backend_iface;
    b->device = dev;
    return b;
}

static void add_pretends(int n) {
    pretend_reg.api_version = GGML_BACKEND_API_VERSION;
    pretend_reg.iface = {
        [](ggml_backend_reg_t) { return "GPU"; },
        [](ggml_backend_reg_t) { return pretends.size(); },
        [](ggml_backend_reg_t, size_t i) { return &pretends[i]->dev; },
        [](ggml_backend_reg_t, const char *) -> void * { return nullptr; },
    };
    for (int i = 0; i < n; i++) {
        auto * p = new pretend();
        p->name = "GPU" + std::to_string(i);
        p->dev.reg = &pretend_reg;
        p->dev.context = p;
        p->dev.iface = {
            [](ggml_backend_dev_t d) { return ((pretend *) d->context)->name.c_str(); },
            [](ggml_backend_dev_t d) { return ((pretend *) d->context)->name.c_str(); },
            [](ggml_backend_dev_t, size_t * f, size_t * t) { *f = *t = (size_t) 80 << 30; },
            [](ggml_backend_dev_t) { return GGML_BACKEND_DEVICE_TYPE_GPU; },
            [](ggml_backend_dev_t d, ggml_backend_dev_props * props) {
                *props = {};
                props->name = ((pretend *) d->context)->name.c_str();
                props->description = props->name;
                props->memory_free = props->memory_total = (size_t) 80 << 30;
                props->type = GGML_BACKEND_DEVICE_TYPE_GPU;
                props->caps.async = true;
                props->caps.host_buffer = true;
                props->caps.events = true;
            },
            pretend_init,
            [](ggml_backend_dev_t d) { return &((pretend *) d->context)->buft; },
            [](ggml_backend_dev_t) { return &pretend_host; },
            nullptr,
            pretend_supports_op,
            [](ggml_backend_dev_t d, ggml_backend_buffer_type_t b) { return b == &((pretend *) d->context)->buft; },
            [](ggml_backend_dev_t, const ggml_tensor * op) { return pretend_op_rows(op) >= 32; },
            [](ggml_backend_dev_t d) { return new ggml_backend_event{d, nullptr}; },
            [](ggml_backend_dev_t, ggml_backend_event_t e) { delete e; },
            [](ggml_backend_dev_t, ggml_backend_event_t) {},
        };
        p->buft.device = &p->dev;
        p->buft.context = p;
        p->buft.iface = {
            pretend_buft_name,
            [](ggml_backend_buffer_type_t b, size_t size) { return ggml_backend_buffer_init(b, pretend_buffer_iface, nullptr, size); },
            [](ggml_backend_buffer_type_t) { return (size_t) 128; },
            nullptr,
            pretend_alloc_size,
            nullptr,
        };
        pretends.push_back(p);
    }
    pretend_host = *ggml_backend_cpu_buffer_type();
    pretend_host.device = &pretends[0]->dev;
    pretend_host.iface.get_name = [](ggml_backend_buffer_type_t) { return "GPU_Host"; };
    pretend_host.iface.alloc_buffer = [](ggml_backend_buffer_type_t b, size_t size) {
        auto * buf = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
        buf->buft = b;
        return buf;
    };
    ggml_backend_register(&pretend_reg);
}

// ---- which tensors are alive at the peak ------------------------------------------------------------------------

static bool inplace_op(const ggml_tensor * t) {
    switch (t->op) {
        case GGML_OP_FILL: case GGML_OP_SCALE: case GGML_OP_DIAG_MASK_ZERO: case GGML_OP_DIAG_MASK_INF: case GGML_OP_ADD:
        case GGML_OP_ADD_ID: case GGML_OP_ADD1: case GGML_OP_SUB: case GGML_OP_MUL: case GGML_OP_DIV: case GGML_OP_SQR:
        case GGML_OP_SQRT: case GGML_OP_LOG: case GGML_OP_UNARY: case GGML_OP_ROPE: case GGML_OP_RMS_NORM:
        case GGML_OP_CLAMP: case GGML_OP_SOFT_MAX: return true;
        default: return false;
    }
}

static void print_peak(ggml_cgraph * g, size_t align, FILE * out) {
    struct life { int children = 0; int views = 0; const ggml_tensor * owner = nullptr; };
    std::unordered_map<const ggml_tensor *, life> h;
    std::map<const ggml_tensor *, size_t> live; // owner -> bytes
    size_t now = 0, peak = 0; std::map<const ggml_tensor *, size_t> at; const ggml_tensor * at_node = nullptr;
    std::unordered_set<const ggml_tensor *> owned;
    auto bytes = [&](const ggml_tensor * t) { return GGML_PAD(ggml_nbytes(t), align); };
    auto alloc = [&](const ggml_tensor * t) {
        if (t->data || t->buffer || owned.count(t) || t->view_src) return;
        owned.insert(t);
        if (inplace_op(t)) {
            for (int i = 0; i < GGML_MAX_SRC; i++) {
                const ggml_tensor * p = t->src[i];
                if (!p) continue;
                const ggml_tensor * root = p->view_src ? p->view_src : p;
                if (!live.count(root) || (p->flags & GGML_TENSOR_FLAG_OUTPUT) || (root->flags & GGML_TENSOR_FLAG_OUTPUT)) continue;
                bool same = p->type == t->type;
                for (int d = 0; d < GGML_MAX_DIMS; d++) same = same && p->ne[d] == t->ne[d] && p->nb[d] == t->nb[d];
                if (!same || h[p].children != 1 || h[p].views != 0) continue;
                if (p->view_src && !(h[root].views == 1 && h[root].children == 0 && p->view_offs == 0)) continue;
                now -= live[root]; live.erase(root);
                live[t] = bytes(t); now += live[t];
                return;
            }
        }
        live[t] = bytes(t); now += live[t];
    };
    auto note = [&](const ggml_tensor * n) { if (now > peak) { peak = now; at = live; at_node = n; } };
    auto drop = [&](const ggml_tensor * t) {
        if ((t->flags & GGML_TENSOR_FLAG_OUTPUT) || !live.count(t)) return;
        now -= live[t]; live.erase(t);
    };
    const int n = ggml_graph_n_nodes(g);
    for (int i = 0; i < g->n_leafs; i++) alloc(g->leafs[i]);
    for (int i = 0; i < n; i++) {
        const ggml_tensor * t = g->nodes[i];
        if (t->view_src && t->op != GGML_OP_NONE) h[t->view_src].views++;
        if (t->flags & GGML_TENSOR_FLAG_INPUT) alloc(t);
        for (int j = 0; j < GGML_MAX_SRC; j++) if (t->src[j]) {
            h[t->src[j]].children++;
            if (t->src[j]->flags & GGML_TENSOR_FLAG_INPUT) alloc(t->src[j]);
        }
    }
    for (int i = 0; i < n; i++) {
        const ggml_tensor * t = g->nodes[i];
        for (int j = 0; j < GGML_MAX_SRC; j++) if (t->src[j]) alloc(t->src[j]);
        alloc(t); note(t);
        for (int j = 0; j < GGML_MAX_SRC; j++) {
            const ggml_tensor * p = t->src[j];
            if (!p) continue;
            auto & l = h[p]; l.children--;
            if (l.children == 0 && l.views == 0) {
                if (p->view_src) {
                    auto & r = h[p->view_src]; r.views--;
                    if (r.views == 0 && r.children == 0) drop(p->view_src);
                } else drop(p);
            }
        }
    }
    fprintf(out, "peak %zu at %s (%s)\n", peak, at_node->name, ggml_op_name(at_node->op));
    std::vector<std::pair<size_t, const ggml_tensor *>> v;
    for (auto & [t, b] : at) v.push_back({b, t});
    std::sort(v.rbegin(), v.rend());
    for (auto & [b, t] : v) if (b*200 > peak) {
        fprintf(out, "  %12zu %-24s %-16s %s [%lld,%lld,%lld,%lld]\n", b, t->name, ggml_op_desc(t), ggml_type_name(t->type),
                (long long) t->ne[0], (long long) t->ne[1], (long long) t->ne[2], (long long) t->ne[3]);
    }
    if (!getenv("PROBE_NODES")) return;
    // place the graph for real in one CPU buffer to see each tensor's address (weights and caches get a stand-in address)
    for (int i = 0; i < n; i++) {
        auto settle = [](ggml_tensor * t) { if (t && t->buffer && !t->data && !t->view_src) t->data = (void *) 0x1000; };
        ggml_tensor * t = g->nodes[i];
        settle(t->view_src);
        for (int j = 0; j < GGML_MAX_SRC; j++) if (t->src[j]) { settle(t->src[j]); settle(t->src[j]->view_src); }
    }
    ggml_gallocr_t ga = ggml_gallocr_new(ggml_backend_cpu_buffer_type());
    ggml_gallocr_alloc_graph(ga, g);
    const char * lo = nullptr;
    for (auto * t : owned) if (!lo || (const char *) t->data < lo) lo = (const char *) t->data;
    auto at_mib = [&](const ggml_tensor * t) { return owned.count(t) ? ((const char *) t->data - lo)/1048576.0 : -1.0; };
    for (int i = 0; i < g->n_leafs; i++) if (owned.count(g->leafs[i])) {
        fprintf(out, "  leaf %10.4f %s %zu\n", at_mib(g->leafs[i]), g->leafs[i]->name, ggml_nbytes(g->leafs[i]));
    }
    for (int i = 0; i < n; i++) {
        const ggml_tensor * t = g->nodes[i];
        fprintf(out, "  node %4d %10.4f %-14s %-26s %s [%lld,%lld,%lld,%lld] %s <-", i, at_mib(t), ggml_op_desc(t), t->name, ggml_type_name(t->type),
                (long long) t->ne[0], (long long) t->ne[1], (long long) t->ne[2], (long long) t->ne[3], t->view_src ? "view" : "");
        for (int j = 0; j < GGML_MAX_SRC; j++) if (t->src[j]) fprintf(out, " %s", t->src[j]->name);
        fprintf(out, "\n");
    }
}

// ---- main ---------------------------------------------------------------------------------------------------------

static std::string logged;

static void put_map(const char * key, const std::map<std::string, size_t> & m) {
    printf("\"%s\":{", key);
    bool first = true;
    for (auto & [k, v] : m) { printf("%s\"%s\":%zu", first ? "" : ",", k.c_str(), v); first = false; }
    printf("}");
}

static std::map<std::string, size_t> sizes(const llama_memory_i * m) {
    std::map<std::string, size_t> out;
    for (auto & [b, s] : m->memory_breakdown()) out[ggml_backend_buft_name(b)] += s;
    return out;
}

static ggml_type type_by_name(const std::string & s) {
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const char * n = ggml_type_name((ggml_type) i);
        if (n && s == n) return (ggml_type) i;
    }
    fprintf(stderr, "unknown type %s\n", s.c_str());
    exit(2);
}

int main(int argc, char ** argv) {
    std::map<std::string, std::string> a;
    std::string path;
    for (int i = 1; i < argc; i++) {
        std::string s = argv[i];
        if (s.rfind("--", 0) == 0) { a[s.substr(2)] = i + 1 < argc ? argv[i + 1] : ""; i++; } else path = s;
    }
    auto num = [&](const char * k, int d) { return a.count(k) ? atoi(a[k].c_str()) : d; };
    fa_f16_copy = num("fa-f16-copy", 0);
    fa_supported = num("fa-supported", 1);
    const bool verbose = num("verbose", 0);
    llama_log_set([](ggml_log_level, const char * t, void * v) { logged += t; if (*(const bool *) v) fputs(t, stderr); }, (void *) &verbose);

    const int n_gpu = num("gpus", 0);
    llama_backend_init();
    auto mp = llama_model_default_params();
    if (n_gpu) {
        add_pretends(n_gpu);
        static std::vector<ggml_backend_dev_t> devs;
        for (auto * p : pretends) devs.push_back(&p->dev);
        devs.push_back(nullptr);
        mp.devices = devs.data();
    }
    mp.no_alloc = true;
    mp.use_extra_bufts = num("repack", 0);
    mp.n_gpu_layers = num("ngl", -1);
    mp.load_mode = LLAMA_LOAD_MODE_NONE;
    llama_model * model = llama_model_load_from_file(path.c_str(), mp);
    if (!model) { fputs(logged.c_str(), stderr); return 1; }

    auto cp = llama_context_default_params();
    cp.n_ctx           = num("ctx", 0);
    cp.n_batch         = num("batch", 2048);
    cp.n_ubatch        = num("ubatch", 512);
    cp.n_seq_max       = num("parallel", 1);
    cp.kv_unified      = num("unified", 0);
    cp.swa_full        = num("swa-full", 0);
    cp.n_rs_seq        = num("rs-seq", 0);
    cp.n_outputs_max   = num("outputs", 0);
    cp.type_k          = type_by_name(a.count("type-k") ? a["type-k"] : "f16");
    cp.type_v          = type_by_name(a.count("type-v") ? a["type-v"] : "f16");
    cp.flash_attn_type = (llama_flash_attn_type) num("fa", -1); // -1 auto, 0 off, 1 on
    llama_context * ctx = llama_init_from_model(model, cp);
    if (!ctx) { fputs(logged.c_str(), stderr); return 1; }

    std::map<std::string, size_t> m, c, w;
    for (auto & [b, d] : llama_get_memory_breakdown(ctx)) {
        const std::string n = ggml_backend_buft_name(b);
        if (d.model)   m[n] += d.model;
        if (d.context) c[n] += d.context;
        if (d.compute > 1) w[n] += d.compute;
    }
    printf("{");
    put_map("model", m); printf(","); put_map("context", c); printf(","); put_map("compute", w);
    const llama_memory_i * mem = llama_get_memory(ctx);
    const llama_memory_i * attn = mem, * swa = nullptr, * rec = nullptr;
    if (auto * x = dynamic_cast<const llama_memory_hybrid *>(mem))           { attn = x->get_mem_attn(); rec = x->get_mem_recr(); }
    else if (auto * x = dynamic_cast<const llama_memory_hybrid_iswa *>(mem)) { attn = x->get_mem_attn(); rec = x->get_mem_recr(); }
    else if (dynamic_cast<const llama_memory_recurrent *>(mem))              { rec = mem; attn = nullptr; }
    if (auto * x = dynamic_cast<const llama_kv_cache_iswa *>(attn))          { attn = x->get_base(); swa = x->get_swa(); }
    if (attn) { printf(","); put_map("kv_attention", sizes(attn)); }
    if (swa)  { printf(","); put_map("kv_swa", sizes(swa)); }
    if (rec)  { printf(","); put_map("recurrent", sizes(rec)); }
    for (const char * key : {"output buffer size ="}) {
        auto p = logged.find(key);
        if (p != std::string::npos) printf(",\"output_mib_printed\":%.2f", atof(logged.c_str() + p + strlen(key)));
    }
    printf(",\"n_ctx\":%u,\"n_ctx_seq\":%u,\"n_batch\":%u,\"n_ubatch\":%u,\"flash_attn\":%s}\n", llama_n_ctx(ctx), llama_n_ctx_seq(ctx),
           llama_n_batch(ctx), llama_n_ubatch(ctx), logged.find("Flash Attention not supported") == std::string::npos && num("fa", -1) != 0 ? "true" : "false");
    if (num("peak", 0)) {
        const int seqs = llama_n_seq_max(ctx);
        const int toks = std::min((int) llama_n_ctx(ctx), (int) llama_n_ubatch(ctx));
        const int outs = num("outputs", 0) ? std::min(toks, num("outputs", 0)) : toks;
        print_peak(llama_graph_reserve(ctx, toks, seqs, outs), 32, stdout);
    }
    fflush(stdout);
    _Exit(0); // the pretend buffers must not be freed as real ones
}
