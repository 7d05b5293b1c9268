// Kernels that try the twins of fibers.cpp alone: only there.

struct Probe { ptr a, b, c; };

// `c` (16 x 8) = `a` (16 x 16) `b` (16 x 8), row by row, in one go.
KERNEL(probe_mma, Probe) {
  u32 lane = thread_id(), g = lane / 4, t = lane % 4;
  const unsigned short* x = at<unsigned short>(a.a);
  const unsigned short* y = at<unsigned short>(a.b);
  u32 left[4], right[2];
  for (u32 i = 0; i < 4; i++) {
    u32 from = (g + i % 2 * 8) * 16 + t * 2 + i / 2 * 8;
    left[i] = (u32)x[from] | (u32)x[from + 1] << 16;
  }
  for (u32 i = 0; i < 2; i++) {
    u32 k = t * 2 + i * 8;
    right[i] = (u32)y[k * 8 + g] | (u32)y[(k + 1) * 8 + g] << 16;
  }
  float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  mma<bf16>(c, left, right);
  for (u32 i = 0; i < 4; i++) at<float>(a.c)[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = c[i];
}

// The same; `b` comes by way of shared memory.
KERNEL(probe_transposed, Probe) {
  unsigned short* shared = dynamic_shared<unsigned short>();
  u32 lane = thread_id(), g = lane / 4, t = lane % 4;
  const unsigned short* x = at<unsigned short>(a.a);
  // Two times the eight columns, so that four matrices are loaded.
  if (lane < 16) copy_16(shared + lane * 16, at<unsigned short>(a.b) + lane * 8, 16);
  if (lane < 16) copy_16(shared + lane * 16 + 8, at<unsigned short>(a.b) + lane * 8, 16);
  copy_commit();
  copy_wait<0>();
  sync_warp();
  u32 left[4], right[4];
  for (u32 i = 0; i < 4; i++) {
    u32 from = (g + i % 2 * 8) * 16 + t * 2 + i / 2 * 8;
    left[i] = (u32)x[from] | (u32)x[from + 1] << 16;
  }
  u32 matrix = lane / 8;
  load_transposed(right, shared + (matrix % 2 * 8 + lane % 8) * 16 + matrix / 2 * 8);
  float c[4] = {0.0f, 0.0f, 0.0f, 0.0f};
  mma<bf16>(c, left, right + 2);
  for (u32 i = 0; i < 4; i++) at<float>(a.c)[(g + i / 2 * 8) * 8 + t * 2 + i % 2] = c[i];
}

// What shared memory holds of one thread's two copies when the first of them was waited for, and of 4 bytes that were asked for of 16.
KERNEL(probe_copies, Probe) {
  if (thread_id() != 0) return;
  u32* shared = dynamic_shared<u32>();
  const u32* x = at<u32>(a.a);
  copy_16(shared, x, 4);
  copy_commit();
  copy_16(shared + 4, x, 16);
  copy_commit();
  copy_wait<1>();
  for (u32 i = 0; i < 8; i++) at<u32>(a.c)[i] = shared[i];
  copy_wait<0>();
  for (u32 i = 0; i < 8; i++) at<u32>(a.c)[8 + i] = shared[i];
}

// A bit for each odd lane, how many lanes there are, and how many of them are odd.
KERNEL(probe_votes, Probe) {
  u32 odd = ballot(thread_id() % 2 == 1);
  at<u32>(a.c)[thread_id()] = odd;
  if (thread_id() == 0) at<u32>(a.c)[32] = ones(odd);
}
