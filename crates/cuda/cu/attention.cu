// Attention over paged keys and values (`plimsoll-kernels`, attention): tiles of sixteen keys at absolute positions, whose
// softmax is rescaled at the same keys whatever the batch. A block has one query token and the query heads of one KV
// head. Keys of a chunk of tiles are multiplied side by side; then the tiles follow one another.

#define TILES 8
#define CHUNK (TILES * LANES)
#define THREADS 128

// Where a head's keys begin, or its values, or the scales of either, in elements.
template <typename C> DEVICE u64 keys_at(const Kv& a, u32 page, u32 head) {
  return (u64)page * a.page + a.layer + (u64)head * a.k_dim * a.slots;
}
template <typename C> DEVICE u64 values_at(const Kv& a, u32 page, u32 head) {
  return (u64)page * a.page + a.layer + (u64)a.kv_heads * a.k_dim * a.slots + (u64)head * a.v_dim * a.slots;
}
template <typename C> DEVICE u64 scales_at(const Kv& a, u32 page, u32 of) {
  return values_at<C>(a, page, a.kv_heads) + (u64)of * a.slots * Scale<C>::elements;
}

// One head's part of a token, written by a warp.
template <typename C> DEVICE void write_part(const float* x, u32 dim, C* to, u64 stride, void* scale) {
  u32 lane = thread_id() % 32;
  float by = 1.0f;
  if (Scale<C>::elements > 0) {
    u32 largest = 0;
    for (u32 d = lane; d < dim; d += 32) {
      u32 size = bits_of(x[d]) & 0x7fffffffu;
      largest = size > largest ? size : largest;
    }
    for (u32 lanes = 16; lanes; lanes /= 2) {
      u32 other = shuffle_xor(largest, lanes);
      largest = other > largest ? other : largest;
    }
    float s;
    scale_of(largest, &s, &by);
    if (lane == 0) store_float(s, scale);
  }
  for (u32 d = lane; d < dim; d += 32) narrow(mul_rn(x[d], by), to + d * stride);
}

// A block for a token, a warp for a head.
template <typename C> DEVICE void write_kv(const Kv& a) {
  u32 token = block_x();
  Seq seq = at<Seq>(a.seqs)[at<u32>(a.of)[token]];
  u32 position = seq.start + token - seq.row, slot = position % a.slots;
  u32 page = at<u32>(a.tables)[seq.table + position / a.slots];
  C* pages = at<C>(a.pages);
  for (u32 head = thread_id() / 32; head < a.kv_heads; head += block_threads() / 32) {
    const float* k = at<float>(a.k) + (u64)token * a.k_stride + head * a.k_dim;
    const float* v = at<float>(a.v) + (u64)token * a.v_stride + head * a.v_dim;
    void* k_scale = pages + scales_at<C>(a, page, head) + (u64)slot * Scale<C>::elements;
    void* v_scale = pages + scales_at<C>(a, page, a.kv_heads + head) + (u64)slot * Scale<C>::elements;
    write_part(k, a.k_dim, pages + keys_at<C>(a, page, head) + slot, a.slots, k_scale);
    write_part(v, a.v_dim, pages + values_at<C>(a, page, head) + (u64)slot * a.v_dim, 1, v_scale);
  }
}

DEVICE u32 first_seen(const Kv& a, u32 position) {
  if (a.reach == 1) return position + 1 > a.reach_of ? position + 1 - a.reach_of : 0;
  if (a.reach == 2) return position - position % a.reach_of;
  return 0;
}

template <typename C> DEVICE void attend(const Kv& a) {
  SHARED u32 pages_of[CHUNK];
  u32 token = block_x(), kv_head = block_y(), thread = thread_id(), lane = thread % LANES;
  u32 group = a.q_heads / a.kv_heads;
  // Queries, results, scores, then for each query: the largest score, the lanes of its sum, what tiles shrink by.
  float* q = dynamic_shared<float>();
  float* acc = q + group * a.k_dim;
  float* s = acc + group * a.v_dim;
  float* m = s + group * CHUNK;
  float* l = m + group;
  float* shrink = l + group * LANES;
  float* v_scale = shrink + group * TILES;
  Seq seq = at<Seq>(a.seqs)[at<u32>(a.of)[token]];
  u32 position = seq.start + token - seq.row;
  u32 first = first_seen(a, position), end = position + 1;
  const u32* table = at<u32>(a.tables) + seq.table;
  const C* pages = at<C>(a.pages);
  const float* queries = at<float>(a.q) + (u64)token * a.q_stride + (u64)kv_head * group * a.k_dim;
  for (u32 i = thread; i < group * a.k_dim; i += THREADS) q[i] = queries[i];
  for (u32 i = thread; i < group * a.v_dim; i += THREADS) acc[i] = 0.0f;
  for (u32 i = thread; i < group * LANES; i += THREADS) l[i] = a.sinks && i % LANES == 0 ? 1.0f : 0.0f;
  for (u32 i = thread; i < group; i += THREADS)
    m[i] = a.sinks ? at<float>(a.sinks)[kv_head * group + i] : NEGATIVE_INFINITY;
  for (u32 chunk = first / LANES * LANES; chunk < end; chunk += CHUNK) {
    sync_block();
    // A thread for a key.
    u32 key = chunk + thread;
    bool seen = key >= first && key < end;
    if (seen) {
      u32 page = table[key / a.slots], slot = key % a.slots;
      pages_of[thread] = page;
      const C* k = pages + keys_at<C>(a, page, kv_head) + slot;
      float k_scale = 1.0f;
      if (Scale<C>::elements > 0) {
        k_scale = load_float(pages + scales_at<C>(a, page, kv_head) + (u64)slot * Scale<C>::elements);
        v_scale[thread] =
            load_float(pages + scales_at<C>(a, page, a.kv_heads + kv_head) + (u64)slot * Scale<C>::elements);
      }
      for (u32 g = 0; g < group; g++) {
        float score = 0.0f;
        for (u32 d = 0; d < a.k_dim; d++) score = fma_rn(wide(k[(u64)d * a.slots]), q[g * a.k_dim + d], score);
        if (Scale<C>::elements > 0) score = mul_rn(score, k_scale);
        score = mul_rn(score, a.scale);
        if (a.capped) score = mul_rn(tanh_of(mul_rn(score, div_rn(1.0f, a.cap))), a.cap);
        s[g * CHUNK + thread] = score;
      }
    }
    sync_block();
    // Half a warp for a query, tile after tile.
    for (u32 from = 0; from < group; from += THREADS / LANES) {
      u32 g = from + thread / LANES;
      bool any = g < group;
      float top = any ? m[g] : 0.0f, sum = any ? l[g * LANES + lane] : 0.0f;
      for (u32 tile = 0; tile < TILES; tile++) {
        u32 key = chunk + tile * LANES + lane;
        bool mine = any && key >= first && key < end;
        float score = mine ? s[g * CHUNK + tile * LANES + lane] : NEGATIVE_INFINITY;
        float largest = larger(score, NEGATIVE_INFINITY);
        for (u32 lanes = LANES / 2; lanes; lanes /= 2) {
          float other = shuffle_xor(largest, lanes);
          largest = other > largest ? other : largest;
        }
        u32 tile_from = chunk + tile * LANES;
        if (!any || tile_from >= end || tile_from + LANES <= first) continue;
        float now = largest > top ? largest : top;
        float p = mine ? exp_of(sub_rn(score, now)) : 0.0f;
        // What was added up so far shrinks; a number that none shrinks by says that nothing does.
        float by = -1.0f;
        if (now > top) {
          by = exp_of(sub_rn(top, now));
          sum = mul_rn(sum, by);
          top = now;
        }
        sum = add_rn(sum, p);
        if (Scale<C>::elements > 0 && mine) p = mul_rn(p, v_scale[tile * LANES + lane]);
        s[g * CHUNK + tile * LANES + lane] = p;
        if (lane == 0) shrink[g * TILES + tile] = by;
      }
      sync_warp();
      if (any) {
        l[g * LANES + lane] = sum;
        if (lane == 0) m[g] = top;
      }
    }
    sync_block();
    // A thread for an element of a result, key after key.
    for (u32 i = thread; i < group * a.v_dim; i += THREADS) {
      u32 g = i / a.v_dim, d = i % a.v_dim;
      float sum = acc[i];
      for (u32 tile = 0; tile < TILES; tile++) {
        u32 tile_from = chunk + tile * LANES;
        u32 from = tile_from > first ? tile_from : first;
        u32 to = tile_from + LANES < end ? tile_from + LANES : end;
        if (from >= to) continue;
        float by = shrink[g * TILES + tile];
        if (by >= 0.0f) sum = mul_rn(sum, by);
        for (u32 key = from; key < to; key++) {
          u64 v = values_at<C>(a, pages_of[key - chunk], kv_head) + (u64)(key % a.slots) * a.v_dim + d;
          sum = fma_rn(wide(pages[v]), s[g * CHUNK + key - chunk], sum);
        }
      }
      acc[i] = sum;
    }
  }
  sync_block();
  float* out = at<float>(a.out) + ((u64)token * a.q_heads + (u64)kv_head * group) * a.v_dim;
  for (u32 i = thread; i < group * a.v_dim; i += THREADS) {
    float sum = 0.0f;
    for (u32 n = 0; n < LANES; n++) sum = add_rn(sum, l[i / a.v_dim * LANES + n]);
    out[i] = div_rn(acc[i], sum);
  }
}

// Where one token's latent and shared key lie.
template <typename C> DEVICE u64 latent_at(const Latents& a, const u32* table, u32 position) {
  return (u64)table[position / a.slots] * a.page + a.layer + (u64)(position % a.slots) * a.k_dim;
}

template <typename C> DEVICE void write_latents(const Latents& a) {
  u32 token = block_x();
  Seq seq = at<Seq>(a.seqs)[at<u32>(a.of)[token]];
  const u32* table = at<u32>(a.tables) + seq.table;
  C* to = at<C>(a.pages) + latent_at<C>(a, table, seq.start + token - seq.row);
  const float* x = at<float>(a.latent) + (u64)token * a.latent_stride;
  for (u32 d = thread_id(); d < a.k_dim; d += block_threads()) narrow(x[d], to + d);
}

// A block for a query token and one of its heads (`plimsoll-kernels`, latent): everything about a head is its own.
template <typename C> DEVICE void attend_latents(const Latents& a) {
  SHARED u64 rows[CHUNK];
  SHARED float s[CHUNK];
  SHARED float tops[TILES + 1];
  SHARED float shrinks[TILES];
  u32 token = block_x(), head = block_y(), thread = thread_id(), lane = thread % LANES;
  float* q = dynamic_shared<float>();
  float* acc = q + a.k_dim;
  float* total = acc + a.v_dim;
  Seq seq = at<Seq>(a.seqs)[at<u32>(a.of)[token]];
  u32 end = seq.start + token - seq.row + 1, rope = a.k_dim - a.v_dim;
  const u32* table = at<u32>(a.tables) + seq.table;
  const C* pages = at<C>(a.pages);
  const float* low = at<float>(a.q) + (u64)token * a.q_stride + (u64)head * a.v_dim;
  const float* rotated = at<float>(a.q_rope) + (u64)token * a.rope_stride + (u64)head * rope;
  for (u32 d = thread; d < a.k_dim; d += THREADS) q[d] = d < a.v_dim ? low[d] : rotated[d - a.v_dim];
  for (u32 d = thread; d < a.v_dim; d += THREADS) acc[d] = 0.0f;
  if (thread == 0) {
    *total = 0.0f;
    tops[TILES] = NEGATIVE_INFINITY;
  }
  for (u32 chunk = 0; chunk < end; chunk += CHUNK) {
    sync_block();
    u32 key = chunk + thread;
    bool seen = key < end;
    float score = NEGATIVE_INFINITY;
    if (seen) {
      u64 row = latent_at<C>(a, table, key);
      rows[thread] = row;
      score = 0.0f;
      for (u32 d = 0; d < a.k_dim; d++) score = fma_rn(wide(pages[row + d]), q[d], score);
      score = mul_rn(score, a.scale);
    }
    s[thread] = score;
    sync_block();
    if (thread == 0) {
      // The largest so far, tile by tile.
      float top = tops[TILES];
      for (u32 tile = 0; tile < TILES; tile++) {
        for (u32 i = tile * LANES; i < (tile + 1) * LANES && chunk + i < end; i++) top = larger(s[i], top);
        tops[tile] = top;
      }
    }
    sync_block();
    u32 tile = thread / LANES;
    if (lane == 0) shrinks[tile] = exp_of(sub_rn(tile ? tops[tile - 1] : tops[TILES], tops[tile]));
    sync_block();
    s[thread] = seen ? exp_of(sub_rn(score, tops[tile])) : 0.0f;
    sync_block();
    u32 tiles = (end - chunk + LANES - 1) / LANES;
    if (tiles > TILES) tiles = TILES;
    if (thread == 0) {
      float sum = *total;
      for (u32 t = 0; t < tiles; t++) {
        sum = mul_rn(sum, shrinks[t]);
        for (u32 i = t * LANES; i < (t + 1) * LANES && chunk + i < end; i++) sum = add_rn(sum, s[i]);
      }
      *total = sum;
      tops[TILES] = tops[TILES - 1];
    }
    for (u32 d = thread; d < a.v_dim; d += THREADS) {
      float sum = acc[d];
      for (u32 t = 0; t < tiles; t++) {
        sum = mul_rn(sum, shrinks[t]);
        for (u32 i = t * LANES; i < (t + 1) * LANES && chunk + i < end; i++)
          sum = fma_rn(wide(pages[rows[i] + d]), s[i], sum);
      }
      acc[d] = sum;
    }
  }
  sync_block();
  float* out = at<float>(a.out) + (u64)token * a.out_stride + (u64)head * a.v_dim;
  for (u32 d = thread; d < a.v_dim; d += THREADS) out[d] = div_rn(acc[d], *total);
}

#define ATTENTION(name, C)                                         \
  KERNEL(write_kv_##name, Kv) { write_kv<C>(a); }                  \
  KERNEL(attend_##name, Kv) { attend<C>(a); }

#define LATENT(name, C)                                            \
  KERNEL(write_latents_##name, Latents) { write_latents<C>(a); }   \
  KERNEL(attend_latents_##name, Latents) { attend_latents<C>(a); }



ATTENTION(f32, float)
ATTENTION(bf16, bf16)
ATTENTION(f16, f16)
ATTENTION(fp8, f8)
ATTENTION(int8, i8)
LATENT(f32, float)
LATENT(bf16, bf16)
LATENT(f16, f16)
LATENT(fp8, f8)
