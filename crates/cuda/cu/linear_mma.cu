// `y = x W^T` on tensor cores: x rounded to bfloat16, sums in f32. An output element begins as what it starts from, and
// takes k sixteen by sixteen in order, by one instruction: it is the same in a tile of any size, at any place of it. A
// block has ROWS of x and COLUMNS outputs, a warp WARP_ROWS and WARP_COLUMNS of them; weights are under way for STAGES - 1
// steps of STEP columns of k. Weights of eight and four bits are made bfloat16 when they are read there.

#ifdef TENSOR_CORES

#define NO_ROW 0xffffffffu

// Which rows a tile has, of a matrix of many among the ones that it is meant for. How many.
template <u32 ROWS> DEVICE u32 rows_of_tile(const Linear& a, u32 tile, u32* rows) {
  SHARED u32 counts[32];
  u32 thread = thread_id(), threads = block_threads(), first = tile * ROWS;
  if (!a.routes) {
    for (u32 i = thread; i < ROWS; i += threads) rows[i] = first + i < a.rows ? (first + i) * a.step + block_z() : NO_ROW;
    sync_block();
    return first < a.rows ? (a.rows - first < ROWS ? a.rows - first : ROWS) : 0;
  }
  for (u32 i = thread; i < ROWS; i += threads) rows[i] = NO_ROW;
  u32 taken = a.wide / 2, seen = 0;
  for (u32 from = 0; from < a.rows && seen < first + ROWS; from += threads) {
    u32 row = from + thread;
    bool mine = row < a.rows && (u32)at<float>(a.routes)[(u64)(row / taken) * a.wide + row % taken] == block_z();
    u32 votes = ballot(mine);
    if (thread % 32 == 0) counts[thread / 32] = ones(votes);
    sync_block();
    u32 rank = seen + ones(votes & ((1u << thread % 32) - 1));
    for (u32 warp = 0; warp < threads / 32; warp++) {
      if (warp < thread / 32) rank += counts[warp];
      seen += counts[warp];
    }
    if (mine && rank >= first && rank < first + ROWS) rows[rank - first] = row;
    sync_block();
  }
  return seen > first ? (seen - first < ROWS ? seen - first : ROWS) : 0;
}

// k that a word has, and lines of a step of STEP of k: of scales, each for so many of k, then of words.
template <u32 FORM, u32 STEP> struct Lines {
  static const u32 each = FORM == WEIGHT_BF16 ? 2 : FORM < WEIGHT_INT4 ? 4 : 8;
  static const u32 scaled = FORM == WEIGHT_INT4 ? 64 : FORM < WEIGHT_INT4 ? 128 : GROUP_COLUMNS(FORM);
  static const u32 scales = FORM == WEIGHT_BF16 ? 0 : STEP > scaled ? STEP / scaled : 1;
  static const u32 all = scales + STEP / each;
};

// Where a line's word of an output lies in a stage: eight outputs together, so placed that the four lines of pairs that a
// warp reads at once lie in different banks.
template <u32 FORM, u32 COLUMNS> DEVICE u32 place(u32 line, u32 output) {
  if (FORM != WEIGHT_BF16) return line * COLUMNS + output;
  return line * COLUMNS + ((output / 8) ^ (line % 4)) * 8 + output % 8;
}

// One step of weights on its way to shared memory, as they lie in the panels; zeros past n and k.
template <u32 FORM, u32 COLUMNS, u32 STEP> DEVICE void stage_weights(const Linear& a, const u32* matrix, u32 step, u32* to) {
  typedef Lines<FORM, STEP> L;
  u32 panels = (a.n + PANEL - 1) / PANEL, first = block_y() * (COLUMNS / PANEL);
  u64 panel_words = PANEL * row_words(FORM, a.k);
  for (u32 i = thread_id(); i < L::all * (COLUMNS / 4); i += block_threads()) {
    u32 line = i / (COLUMNS / 4), output = i % (COLUMNS / 4) * 4, panel = first + output / PANEL;
    bool scale = line < L::scales;
    u32 k = step * STEP + (scale ? line * L::scaled : (line - L::scales) * L::each);
    if (scale) k -= k % L::scaled;
    u32 from = k / L::each;
    // In a panel a line of scales begins each group.
    if (L::scales) from += k / L::scaled + !scale;
    bool there = panel < panels && k < a.k;
    const u32* words = there ? matrix + panel * panel_words + (u64)from * PANEL + output % PANEL : matrix;
    copy_16(to + place<FORM, COLUMNS>(line, output), words, there ? 16 : 0);
  }
}

// Two elements of an output, from `k` of step `step` on, as bfloat16.
template <u32 FORM, u32 COLUMNS, u32 STEP> DEVICE u32 two_of(const u32* w, u32 step, u32 k, u32 output) {
  typedef Lines<FORM, STEP> L;
  u32 word = w[place<FORM, COLUMNS>(L::scales + k / L::each, output)];
  if (FORM == WEIGHT_BF16) return word;
  u32 scales = w[(STEP > L::scaled ? k / L::scaled : 0) * COLUMNS + output];
  if (FORM == WEIGHT_FP8) {
    word >>= 8 * (k % 4);
    float scale = float_of(scales);
    return pair_of(mul_rn(e4m3_of(word), scale), mul_rn(e4m3_of(word >> 8), scale), bf16());
  }
  if (FORM == WEIGHT_INT8) {
    word = (word ^ 0x80808080u) >> (8 * (k % 4));
    float scale = float_of(scales);
    return pair_of(mul_rn((float)(signed char)word, scale), mul_rn((float)(signed char)(word >> 8), scale), bf16());
  }
  word >>= 8 * (k % 4) + 4 * (k % 8 / 4);
  if (FORM != WEIGHT_INT4) {
    float zero = (float)(scales & GROUP_ZERO), scale = float_of(scales & ~GROUP_BELOW);
    return pair_of(mul_rn((float)(word & 15) - zero, scale), mul_rn((float)(word >> 8 & 15) - zero, scale), bf16());
  }
  // Numbers of 0 to 15, eight more than what is meant; a scale is for 32 of them, two are in a word.
  float scale = float_of(scales >> (16 * ((step * STEP + k) % 64 / 32)) << 16);
  return pair_of(mul_rn((float)(word & 15) - 8.0f, scale), mul_rn((float)(word >> 8 & 15) - 8.0f, scale), bf16());
}

// Four elements of a row of x.
DEVICE Sixteen four_of(const Linear& a, u32 row, u32 k) {
  Sixteen x = {{0, 0, 0, 0}};
  if (row == NO_ROW || k >= a.k) return x;
  const u32* from = at<u32>(a.x) + (u64)(row / a.share) * a.x_stride + k;
  if (a.k % 4 == 0) return *(const Sixteen*)from;
  for (u32 i = 0; i < 4 && k + i < a.k; i++) x.words[i] = from[i];
  return x;
}

template <u32 FORM, u32 ROWS, u32 COLUMNS, u32 WARP_ROWS, u32 WARP_COLUMNS, u32 STEP, u32 STAGES>
DEVICE void linear_tile(const Linear& a, const u32* rows, u32 count) {
  const u32 WARPS = ROWS / WARP_ROWS * (COLUMNS / WARP_COLUMNS), THREADS_OF = 32 * WARPS;
  // Fours of x that a thread brings for a step, and words of a row of them, which begin in different banks.
  const u32 FOURS = (ROWS * STEP / 4 + THREADS_OF - 1) / THREADS_OF, ROW = STEP / 2 + 4;
  const u32 DOWN = WARP_ROWS / 16, ACROSS = WARP_COLUMNS / 8;
  const u32 STAGE = Lines<FORM, STEP>::all * COLUMNS;
  u32* weights = dynamic_shared<u32>();
  u32* inputs = weights + STAGES * STAGE;
  u32 thread = thread_id(), lane = thread % 32, warp = thread / 32, g = lane / 4, t = lane % 4;
  u32 top = warp % (ROWS / WARP_ROWS) * WARP_ROWS, left = warp / (ROWS / WARP_ROWS) * WARP_COLUMNS;
  u32 outputs = block_y() * COLUMNS;
  const u32* matrix = at<u32>(a.words) + (u64)block_z() * a.matrix_words;
  float acc[DOWN][ACROSS][4];
#pragma unroll
  for (u32 i = 0; i < DOWN; i++)
#pragma unroll
    for (u32 j = 0; j < ACROSS; j++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) {
        u32 row = rows[top + i * 16 + g + e / 2 * 8], output = outputs + left + j * 8 + t * 2 + e % 2;
        float start = 0.0f;
        if (row != NO_ROW && output < a.n) {
          if (a.start == START_BIAS) start = at<float>(a.bias)[(a.routes ? (u64)block_z() * a.n : 0) + output];
          if (a.start == START_KEEP) start = at<float>(a.y)[(u64)row * a.n + output];
        }
        acc[i][j][e] = start;
      }
  u32 steps = (a.k + STEP - 1) / STEP;
  Sixteen coming[FOURS];
#pragma unroll
  for (u32 stage = 0; stage + 1 < STAGES; stage++) {
    if (stage < steps) stage_weights<FORM, COLUMNS, STEP>(a, matrix, stage, weights + stage * STAGE);
    copy_commit();
  }
#pragma unroll
  for (u32 i = 0; i < FOURS; i++) {
    u32 four = thread + i * THREADS_OF;
    if (four < ROWS * STEP / 4) coming[i] = four_of(a, rows[four / (STEP / 4)], four % (STEP / 4) * 4);
  }
  for (u32 step = 0; step < steps; step++) {
    u32* x = inputs + step % 2 * ROWS * ROW;
#pragma unroll
    for (u32 i = 0; i < FOURS; i++) {
      u32 four = thread + i * THREADS_OF;
      if (four >= ROWS * STEP / 4) continue;
      u32* to = x + four / (STEP / 4) * ROW + four % (STEP / 4) * 2;
      to[0] = pair_of(float_of(coming[i].words[0]), float_of(coming[i].words[1]), bf16());
      to[1] = pair_of(float_of(coming[i].words[2]), float_of(coming[i].words[3]), bf16());
    }
    copy_wait<STAGES - 2>();
    // Everybody's inputs and weights of this step are there, and nobody is at the step before, whose place is filled next.
    sync_block();
    u32 next = step + STAGES - 1;
    if (next < steps) stage_weights<FORM, COLUMNS, STEP>(a, matrix, next, weights + next % STAGES * STAGE);
    copy_commit();
    if (step + 1 < steps) {
#pragma unroll
      for (u32 i = 0; i < FOURS; i++) {
        u32 four = thread + i * THREADS_OF;
        if (four < ROWS * STEP / 4)
          coming[i] = four_of(a, rows[four / (STEP / 4)], (step + 1) * STEP + four % (STEP / 4) * 4);
      }
    }
    const u32* w = weights + step % STAGES * STAGE;
#pragma unroll
    for (u32 part = 0; part < STEP / 16; part++) {
      if (step * STEP + part * 16 >= a.k) break;
      u32 right[ACROSS][2];
#pragma unroll
      for (u32 j = 0; j < ACROSS; j++)
#pragma unroll
        for (u32 e = 0; e < 2; e++) right[j][e] = two_of<FORM, COLUMNS, STEP>(w, step, part * 16 + t * 2 + e * 8, left + j * 8 + g);
#pragma unroll
      for (u32 i = 0; i < DOWN; i++) {
        if (top + i * 16 >= count) continue;
        u32 fragment[4];
#pragma unroll
        for (u32 e = 0; e < 4; e++) fragment[e] = x[(top + i * 16 + g + e % 2 * 8) * ROW + part * 8 + t + e / 2 * 4];
#pragma unroll
        for (u32 j = 0; j < ACROSS; j++) mma<bf16>(acc[i][j], fragment, right[j]);
      }
    }
  }
#pragma unroll
  for (u32 i = 0; i < DOWN; i++)
#pragma unroll
    for (u32 j = 0; j < ACROSS; j++)
#pragma unroll
      for (u32 e = 0; e < 4; e++) {
        u32 row = rows[top + i * 16 + g + e / 2 * 8], output = outputs + left + j * 8 + t * 2 + e % 2;
        if (row != NO_ROW && output < a.n) at<float>(a.y)[(u64)row * a.n + output] = acc[i][j][e];
      }
}

// Tiles of rows one after the other, as far as there are more than blocks for them.
template <u32 FORM, u32 ROWS, u32 COLUMNS, u32 WARP_ROWS, u32 WARP_COLUMNS, u32 STEP, u32 STAGES>
DEVICE void linear_mma(const Linear& a) {
  SHARED u32 rows[ROWS];
  for (u32 tile = block_x();; tile += blocks_x()) {
    u32 count = rows_of_tile<ROWS>(a, tile, rows);
    if (count == 0) return;
    linear_tile<FORM, ROWS, COLUMNS, WARP_ROWS, WARP_COLUMNS, STEP, STAGES>(a, rows, count);
    sync_block();
  }
}

#define LINEAR_MMA(form, FORM)                                                                        \
  KERNEL(linear_mma_##form##_16, Linear) { linear_mma<FORM, 16, 32, 16, 8, 128, 5>(a); }               \
  KERNEL(linear_mma_##form##_64, Linear) { linear_mma<FORM, 64, 32, 16, 32, 64, 5>(a); }              \
  KERNEL(linear_mma_##form##_128, Linear) { linear_mma<FORM, 128, 128, 64, 32, 32, 3>(a); }

LINEAR_MMA(bf16, WEIGHT_BF16)
LINEAR_MMA(fp8, WEIGHT_FP8)
LINEAR_MMA(int8, WEIGHT_INT8)
LINEAR_MMA(int4, WEIGHT_INT4)
LINEAR_MMA(g128, WEIGHT_G128)
LINEAR_MMA(g64, WEIGHT_G64)
LINEAR_MMA(g32, WEIGHT_G32)

#endif
