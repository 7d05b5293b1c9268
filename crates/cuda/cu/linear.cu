// `y = x W^T`, the weights packed in panels of 32 output rows (`plimsoll-kernels`, linear). A warp has a panel: a lane
// is an output row, and its sum is one chain of fused multiply-adds over k, as everywhere else.

#define START_ZERO 0
#define START_BIAS 1
#define START_KEEP 2

// Which rows of x and y, and which matrix.
template <u32 ROWS> struct Work {
  const u32* panel;
  const float* x[ROWS];
  float* y[ROWS];
  float acc[ROWS];
  u32 output;
  bool any, inside;
};

template <u32 ROWS> DEVICE Work<ROWS> work_of(const Linear& a) {
  Work<ROWS> w;
  u32 panel = block_x() * (block_threads() / 32) + thread_id() / 32, lane = thread_id() % 32;
  w.output = panel * PANEL + lane;
  w.any = panel < (a.n + PANEL - 1) / PANEL;
  w.inside = w.output < a.n;
  if (!w.any) return w;
  u64 matrix = block_z();
  for (u32 i = 0; i < ROWS; i++) {
    u64 row = (u64)block_y() * ROWS + i;
    bool there = row < a.rows;
    if (!there) row = a.rows - 1;
    row = row * a.step + block_z();
    if (a.routes) {
      // A row for each expert of each token.
      u64 taken = a.wide / 2;
      matrix = (u64)at<float>(a.routes)[row / taken * a.wide + row % taken];
    }
    w.x[i] = at<float>(a.x) + row / a.share * a.x_stride;
    w.y[i] = at<float>(a.y) + row * a.n + w.output;
    float start = 0.0f;
    if (a.start == START_BIAS && w.inside) start = at<float>(a.bias)[(a.routes ? matrix * a.n : 0) + w.output];
    if (a.start == START_KEEP && w.inside) start = *w.y[i];
    w.acc[i] = start;
    if (!there) w.y[i] = 0;
  }
  w.panel = at<u32>(a.words) + matrix * a.matrix_words + (u64)panel * PANEL * row_words(a.form, a.k) + lane;
  return w;
}

template <u32 ROWS> DEVICE void finish(Work<ROWS>& w) {
  for (u32 i = 0; i < ROWS; i++)
    if (w.inside && w.y[i]) *w.y[i] = w.acc[i];
}

template <u32 ROWS> DEVICE void linear_bf16(const Linear& a) {
  Work<ROWS> w = work_of<ROWS>(a);
  if (!w.any) return;
  for (u32 k = 0; k < a.k; k += 2) {
    u32 pair = w.panel[(u64)(k / 2) * PANEL];
    float low = float_of(pair << 16), high = float_of(pair & 0xffff0000u);
    bool last = k + 1 == a.k;
    for (u32 i = 0; i < ROWS; i++) {
      w.acc[i] = fma_rn(low, w.x[i][k], w.acc[i]);
      w.acc[i] = fma_rn(high, last ? 0.0f : w.x[i][k + 1], w.acc[i]);
    }
  }
  finish(w);
}

// Products under one scale are a chain of their own, which is then multiplied by it and added.
template <u32 ROWS> DEVICE void linear_fp8(const Linear& a) {
  Work<ROWS> w = work_of<ROWS>(a);
  if (!w.any) return;
  const u32* words = w.panel;
  for (u32 k = 0; k < a.k;) {
    u32 end = a.k - k < 128 ? a.k : k + 128;
    float scale = float_of(*words);
    words += PANEL;
    float c[ROWS];
    for (u32 i = 0; i < ROWS; i++) c[i] = 0.0f;
    for (; k < end; k += 4, words += PANEL) {
      u32 four = *words;
      for (u32 byte = 0; byte < 4; byte++) {
        float weight = e4m3_of(four >> (8 * byte));
        for (u32 i = 0; i < ROWS; i++) c[i] = fma_rn(weight, k + byte < a.k ? w.x[i][k + byte] : 0.0f, c[i]);
      }
    }
    for (u32 i = 0; i < ROWS; i++) w.acc[i] = fma_rn(c[i], scale, w.acc[i]);
  }
  finish(w);
}

// Inputs are quantised: of each 128 a scale, the sums of their quarters, and 32 words of four.
#define INPUT_WORDS 37
#define INPUT_HEAD 5

template <u32 ROWS> DEVICE void linear_int8(const Linear& a) {
  Work<ROWS> w = work_of<ROWS>(a);
  if (!w.any) return;
  const u32* words = w.panel;
  for (u32 k = 0, group = 0; k < a.k; k += 128, group++) {
    u32 left = a.k - k, lines = left < 128 ? (left + 3) / 4 : 32;
    float scale = float_of(*words);
    words += PANEL;
    int c[ROWS];
    for (u32 i = 0; i < ROWS; i++) c[i] = 0;
    for (u32 line = 0; line < lines; line++, words += PANEL) {
      u32 four = *words ^ 0x80808080u;
      for (u32 i = 0; i < ROWS; i++) c[i] = dot4(four, bits_of(w.x[i][group * INPUT_WORDS + INPUT_HEAD + line]), c[i]);
    }
    for (u32 i = 0; i < ROWS; i++)
      w.acc[i] = fma_rn((float)c[i], mul_rn(scale, w.x[i][group * INPUT_WORDS]), w.acc[i]);
  }
  finish(w);
}

template <u32 ROWS> DEVICE void linear_int4(const Linear& a) {
  Work<ROWS> w = work_of<ROWS>(a);
  if (!w.any) return;
  const u32* words = w.panel;
  for (u32 k = 0; k < a.k; k += 64) {
    u32 group = k / 128, first = k % 128 / 4, left = a.k - k, lines = left < 64 ? (left + 7) / 8 : 8;
    u32 scales = *words;
    words += PANEL;
    for (u32 part = 0; part * 4 < lines; part++) {
      float scale = float_of(scales >> (16 * part) << 16);
      int c[ROWS];
      for (u32 i = 0; i < ROWS; i++) c[i] = 0;
      for (u32 line = part * 4; line < lines && line < part * 4 + 4; line++, words += PANEL) {
        u32 eight = *words;
        for (u32 high = 0; high < 2; high++) {
          // Numbers of 0 to 15, eight more than what is meant: bytes do not borrow from each other.
          u32 four = ((eight >> (4 * high) & 0x0f0f0f0fu) + 0x78787878u) ^ 0x80808080u;
          for (u32 i = 0; i < ROWS; i++)
            c[i] = dot4(four, bits_of(w.x[i][group * INPUT_WORDS + INPUT_HEAD + first + 2 * line + high]), c[i]);
        }
      }
      for (u32 i = 0; i < ROWS; i++)
        w.acc[i] = fma_rn((float)c[i], mul_rn(scale, w.x[i][group * INPUT_WORDS]), w.acc[i]);
    }
  }
  finish(w);
}

template <u32 ROWS, u32 FORM> DEVICE void linear_group(const Linear& a) {
  Work<ROWS> w = work_of<ROWS>(a);
  if (!w.any) return;
  const u32 GROUP = GROUP_COLUMNS(FORM);
  const u32* words = w.panel;
  for (u32 k = 0; k < a.k; k += GROUP) {
    u32 group = k / 128, first = k % 128 / 4, left = a.k - k, lines = left < GROUP ? (left + 7) / 8 : GROUP / 8;
    float scale = float_of(*words & ~GROUP_BELOW);
    u32 zeros = (*words & GROUP_ZERO) * 0x01010101u;
    words += PANEL;
    int c[ROWS];
    for (u32 i = 0; i < ROWS; i++) c[i] = 0;
    for (u32 line = 0; line < lines; line++, words += PANEL) {
      u32 eight = *words;
      for (u32 high = 0; high < 2; high++) {
        // Numbers of 0 to 15 and 128 more, less at most 31: bytes do not borrow from each other.
        u32 four = (((eight >> (4 * high) & 0x0f0f0f0fu) | 0x80808080u) - zeros) ^ 0x80808080u;
        for (u32 i = 0; i < ROWS; i++)
          c[i] = dot4(four, bits_of(w.x[i][group * INPUT_WORDS + INPUT_HEAD + first + 2 * line + high]), c[i]);
      }
    }
    for (u32 i = 0; i < ROWS; i++)
      w.acc[i] = fma_rn((float)c[i], mul_rn(scale, w.x[i][group * INPUT_WORDS]), w.acc[i]);
  }
  finish(w);
}

template <u32 ROWS> DEVICE void linear_g128(const Linear& a) { linear_group<ROWS, WEIGHT_G128>(a); }
template <u32 ROWS> DEVICE void linear_g64(const Linear& a) { linear_group<ROWS, WEIGHT_G64>(a); }
template <u32 ROWS> DEVICE void linear_g32(const Linear& a) { linear_group<ROWS, WEIGHT_G32>(a); }

#define LINEAR(form)                                       \
  KERNEL(linear_##form##_1, Linear) { linear_##form<1>(a); } \
  KERNEL(linear_##form##_4, Linear) { linear_##form<4>(a); } \
  KERNEL(linear_##form##_8, Linear) { linear_##form<8>(a); }

LINEAR(bf16)
LINEAR(fp8)
LINEAR(int8)
LINEAR(int4)
LINEAR(g128)
LINEAR(g64)
LINEAR(g32)

// A warp for 128 elements of a row of inputs (`plimsoll-kernels`, quantise).
KERNEL(quantise, Quantise) {
  u32 groups = (a.k + 127) / 128, lane = thread_id() % 32;
  u64 item = (u64)block_x() * (block_threads() / 32) + thread_id() / 32;
  if (item >= (u64)a.rows * groups) return;
  u64 row = item / groups;
  u32 group = (u32)(item % groups);
  const float* x = at<float>(a.x) + row * a.k + (u64)group * 128;
  u32* out = at<u32>(a.out) + (row * groups + group) * INPUT_WORDS;
  float v[4];
  u32 largest = 0;
  for (u32 i = 0; i < 4; i++) {
    u32 from = lane * 4 + i;
    v[i] = group * 128 + from < a.k ? x[from] : 0.0f;
    u32 size = bits_of(v[i]) & 0x7fffffffu;
    largest = size > largest ? size : largest;
  }
  for (u32 lanes = 16; lanes; lanes /= 2) {
    u32 other = shuffle_xor(largest, lanes);
    largest = other > largest ? other : largest;
  }
  float scale, inverse;
  scale_of(largest, &scale, &inverse);
  u32 word = 0;
  int sum = 0;
  for (u32 i = 0; i < 4; i++) {
    int q = largest < 0x7f800000u ? whole(mul_rn(v[i], inverse)) : 0;
    sum += q;
    word |= (u32)(q & 0xff) << (8 * i);
  }
  out[INPUT_HEAD + lane] = word;
  for (u32 lanes = 4; lanes; lanes /= 2) sum += (int)shuffle_xor((u32)sum, lanes);
  if (lane % 8 == 0) out[1 + lane / 8] = (u32)sum;
  if (lane == 0) out[0] = bits_of(scale);
}
