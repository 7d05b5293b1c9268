// `linear_bf16` once more, the same sums in the same order, for devices that copy to shared memory without waiting: a
// block has a panel, and STAGES - 1 steps of it are under way while one is multiplied (32 KiB, which is what a
// processor of a large GPU has to have under way for its part of the bandwidth). A warp has ROWS / 4 rows of x; of one row
// only the first warp multiplies.

#ifdef TENSOR_CORES

template <u32 ROWS, u32 STEP, u32 STAGES> DEVICE void linear_staged(const Linear& a) {
  const u32 EACH = (ROWS + 3) / 4, STAGE = STEP / 2 * PANEL + ROWS * STEP;
  u32* stages = dynamic_shared<u32>();
  u32 thread = thread_id(), lane = thread % 32, warp = thread / 32, panel = block_x(), output = panel * PANEL + lane;
  u64 matrix = block_z();
  // Rows past the last are the last once more.
  u32 first = block_y() * ROWS;
  if (a.routes) {
    // A row for each expert of each token: one a block.
    u32 taken = a.wide / 2;
    matrix = (u64)at<float>(a.routes)[(u64)(first / taken) * a.wide + first % taken];
  }
  const u32* words = at<u32>(a.words) + matrix * a.matrix_words + (u64)panel * PANEL * row_words(WEIGHT_BF16, a.k);
  float acc[EACH];
#pragma unroll
  for (u32 i = 0; i < EACH; i++) {
    u32 row = first + warp * EACH + i;
    acc[i] = 0.0f;
    if (warp * EACH >= ROWS || row >= a.rows || output >= a.n) continue;
    u64 of = (u64)row * a.step + block_z();
    if (a.start == START_BIAS) acc[i] = at<float>(a.bias)[(a.routes ? matrix * a.n : 0) + output];
    if (a.start == START_KEEP) acc[i] = at<float>(a.y)[of * a.n + output];
  }
  u32 lines = (a.k + 1) / 2, steps = (a.k + STEP - 1) / STEP;
  auto bring = [&](u32 step) {
    u32* to = stages + step % STAGES * STAGE;
    for (u32 i = thread; i < STEP / 2 * (PANEL / 4); i += block_threads()) {
      u32 line = step * (STEP / 2) + i / (PANEL / 4);
      if (line < lines) copy_16(to + i * 4, words + (u64)line * PANEL + i % (PANEL / 4) * 4, 16);
    }
    u32* x = to + STEP / 2 * PANEL;
    for (u32 i = thread; i < ROWS * (STEP / 4); i += block_threads()) {
      u32 row = first + i / (STEP / 4), k = step * STEP + i % (STEP / 4) * 4;
      if (k >= a.k) continue;
      if (row >= a.rows) row = a.rows - 1;
      u64 of = (u64)row * a.step + block_z();
      const u32* from = at<u32>(a.x) + of / a.share * a.x_stride + k;
      if (a.k % 4 == 0) {
        copy_16(x + i * 4, from, 16);
        continue;
      }
      for (u32 j = 0; j < 4; j++) x[i * 4 + j] = k + j < a.k ? from[j] : 0;
    }
  };
#pragma unroll
  for (u32 step = 0; step + 1 < STAGES; step++) {
    if (step < steps) bring(step);
    copy_commit();
  }
  for (u32 step = 0; step < steps; step++) {
    copy_wait<STAGES - 2>();
    // Everybody's copies are there, and nobody is at the step before, whose place is filled next.
    sync_block();
    if (step + STAGES - 1 < steps) bring(step + STAGES - 1);
    copy_commit();
    if (warp * EACH >= ROWS) continue;
    const u32* w = stages + step % STAGES * STAGE + lane;
    const float* x = (const float*)(stages + step % STAGES * STAGE + STEP / 2 * PANEL) + warp * EACH * STEP;
    u32 here = lines - step * (STEP / 2);
    if (here > STEP / 2) here = STEP / 2;
#pragma unroll 8
    for (u32 line = 0; line < here; line++) {
      u32 pair = w[line * PANEL];
      float low = float_of(pair << 16), high = float_of(pair & 0xffff0000u);
#pragma unroll
      for (u32 i = 0; i < EACH; i++) {
        acc[i] = fma_rn(low, x[i * STEP + line * 2], acc[i]);
        acc[i] = fma_rn(high, x[i * STEP + line * 2 + 1], acc[i]);
      }
    }
  }
#pragma unroll
  for (u32 i = 0; i < EACH; i++) {
    u32 row = first + warp * EACH + i;
    if (warp * EACH >= ROWS || row >= a.rows || output >= a.n) continue;
    at<float>(a.y)[((u64)row * a.step + block_z()) * a.n + output] = acc[i];
  }
}

KERNEL(linear_staged_1, Linear) { linear_staged<1, 128, 5>(a); }
KERNEL(linear_staged_4, Linear) { linear_staged<4, 128, 5>(a); }
KERNEL(linear_staged_32, Linear) { linear_staged<32, 64, 5>(a); }

#endif
