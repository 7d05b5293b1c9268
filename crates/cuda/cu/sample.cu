// What a row of logits comes to (`plimsoll-runtime`, sample): sums and the likeliest tokens, in the processors' order.

#define SPAN 1024
// Words of 64 bits before the keys.
#define SHORT_HEAD 8
#define KEYS 256

DEVICE u64 shuffle_xor(u64 x, unsigned lanes) {
  return (u64)shuffle_xor((u32)x, lanes) | (u64)shuffle_xor((u32)(x >> 32), lanes) << 32;
}
DEVICE double shuffle(double x, unsigned lane) {
  u64 b = bits_of(x);
  return double_of((u64)shuffle((u32)b, lane) | (u64)shuffle((u32)(b >> 32), lane) << 32);
}
DEVICE u64 least_of_warp(u64 x) {
  for (u32 lanes = 16; lanes > 0; lanes /= 2) {
    u64 other = shuffle_xor(x, lanes);
    x = other < x ? other : x;
  }
  return x;
}

// A logit and its token as one number: the larger the logit the smaller it is, then the lower the token.
DEVICE u64 key_of(float x, u32 token) {
  u32 b = bits_of(add_rn(x, 0.0f));
  return (u64)~(b >> 31 ? ~b : b | 0x80000000u) << 32 | token;
}
DEVICE float logit_of(u64 key) {
  u32 ascending = ~(u32)(key >> 32);
  return float_of(ascending >> 31 ? ascending & 0x7fffffffu : ~ascending);
}

// e^x for x of at most 0, where nothing is fused.
DEVICE float exp_apart(float x) {
  const float LEAST = -87.0f, ROUND = 12582912.0f;
  float y = larger(x, LEAST);
  float shifted = add_rn(mul_rn(y, 1.44269504088896340736f), ROUND);
  float n = sub_rn(shifted, ROUND);
  float r = sub_rn(sub_rn(y, mul_rn(n, 0.693359375f)), mul_rn(n, -2.12194440e-4f));
  float p = 1.98756915e-4f;
  p = add_rn(mul_rn(p, r), 1.39819995e-3f);
  p = add_rn(mul_rn(p, r), 8.33345191e-3f);
  p = add_rn(mul_rn(p, r), 4.16657959e-2f);
  p = add_rn(mul_rn(p, r), 1.66666655e-1f);
  p = add_rn(mul_rn(p, r), 5.00000012e-1f);
  float e = add_rn(add_rn(mul_rn(mul_rn(p, r), r), r), 1.0f);
  float scale = float_of((bits_of(shifted) + 127) << 23);
  return x < LEAST ? 0.0f : mul_rn(e, scale);
}

struct Weighed {
  float max, least, temperature;
  DEVICE_MEMBER float weight(float x) const {
    return x >= least ? exp_apart(div_rn(sub_rn(x, max), temperature)) : 0.0f;
  }
};

// One more in the bin of each lane that has one. All lanes of the warp take part.
DEVICE void count(u32* bins, bool has, u32 bin) {
  for (u32 left = ballot(has); left != 0;) {
    u32 first = ones((left & (0u - left)) - 1);
    u32 here = shuffle(bin, first), same = ballot(has && bin == here);
    if (thread_id() % 32 == first) atomic_add(bins + here, ones(same));
    left &= ~same;
  }
}

// A block for each row. Shared: sums of spans, of both kinds.
KERNEL(shorten, Shorten) {
  SHARED u64 keys[KEYS];
  SHARED u64 least[2][32];
  SHARED u32 bins[256];
  SHARED u32 chosen[3];
  u64 row = block_x();
  const u32* brief = at<u32>(a.briefs) + row * 8;
  // The whole block goes.
  if (!brief[0]) return;
  const float* x = at<float>(a.logits) + row * a.vocab;
  u64* out = at<u64>(a.out) + row * a.words;
  u32 thread = thread_id(), threads = block_threads(), lane = thread % 32, warp = thread / 32, warps = threads / 32;

  u64 best = ~0ull, odd = ~0ull;
  for (u32 i = thread; i < a.vocab; i += threads) {
    u64 key = key_of(x[i], i), here = (u64)i << 32 | bits_of(x[i]);
    if (key < best) best = key;
    if (!(x[i] < float_of(0x7f800000u)) && here < odd) odd = here;
  }
  best = least_of_warp(best);
  odd = least_of_warp(odd);
  if (lane == 0) {
    least[0][warp] = best;
    least[1][warp] = odd;
  }
  sync_block();
  best = odd = ~0ull;
  for (u32 i = 0; i < warps; i++) {
    best = least[0][i] < best ? least[0][i] : best;
    odd = least[1][i] < odd ? least[1][i] : odd;
  }
  if (thread == 0) {
    out[0] = (u64)bits_of(logit_of(best)) << 32 | (u32)best;
    out[1] = odd << 32 | odd >> 32;
  }
  if (odd != ~0ull) return;

  Weighed w = {logit_of(best), add_rn(logit_of(best), float_of(brief[3])), float_of(brief[2])};
  u32 spans = (a.vocab + SPAN - 1) / SPAN;
  double* sums = dynamic_shared<double>();
  for (u32 span = warp; span < spans; span += warps) {
    u32 end = span * SPAN + SPAN < a.vocab ? span * SPAN + SPAN : a.vocab;
    double all = 0.0, kept = 0.0;
    for (u32 i = span * SPAN + lane; i < end; i += 32) {
      all = add_rn(all, (double)exp_apart(sub_rn(x[i], w.max)));
      if (w.temperature > 0.0f) kept = add_rn(kept, (double)w.weight(x[i]));
    }
    double sum = 0.0, weight = 0.0;
    for (u32 i = 0; i < 32; i++) {
      sum = add_rn(sum, shuffle(all, i));
      weight = add_rn(weight, shuffle(kept, i));
    }
    if (lane == 0) {
      sums[span] = sum;
      sums[spans + span] = weight;
    }
  }
  sync_block();
  if (warp == 0) {
    // All lanes do the same.
    double all = 0.0, kept = 0.0;
    for (u32 i = 0; i < spans; i++) {
      all = add_rn(all, sums[i]);
      kept = add_rn(kept, sums[spans + i]);
    }
    u32 picked = 0;
    if (brief[6]) {
      double target = mul_rn(double_of((u64)brief[5] << 32 | brief[4]), kept), sum = 0.0, before = 0.0;
      u32 span = 0;
      for (u32 i = 0; i < spans && !(sum > target); i++) {
        double weight = sums[spans + i];
        if (!(weight > 0.0)) continue;
        span = i;
        before = sum;
        sum = add_rn(sum, weight);
      }
      sum = before;
      picked = span * SPAN;
      u32 end = span * SPAN + SPAN < a.vocab ? span * SPAN + SPAN : a.vocab;
      for (u32 from = span * SPAN; from < end && !(sum > target); from += 32) {
        float mine = from + lane < end ? w.weight(x[from + lane]) : 0.0f;
        for (u32 i = 0; i < 32; i++) {
          float weight = shuffle(mine, i);
          if (!(weight > 0.0f) || sum > target) continue;
          picked = from + i;
          sum = add_rn(sum, (double)weight);
        }
      }
    }
    if (lane == 0) {
      out[2] = (u64)bits_of(x[picked]) << 32 | picked;
      out[3] = bits_of(all);
      out[4] = bits_of(kept);
    }
  }

  u32 wanted = brief[1] < KEYS ? brief[1] : KEYS;
  if (wanted == 0) return;
  // The digits of the last key that is wanted, from the first on; until no other begins with them.
  u64 digits = 0, known = 0;
  u32 left = wanted;
  for (u32 shift = 56;; shift -= 8) {
    for (u32 i = thread; i < 256; i += threads) bins[i] = 0;
    sync_block();
    for (u32 from = 0; from < a.vocab; from += threads) {
      u32 i = from + thread;
      u64 key = i < a.vocab ? key_of(x[i], i) : 0;
      count(bins, i < a.vocab && (key & known) == digits, (u32)(key >> shift) & 255);
    }
    sync_block();
    if (thread == 0) {
      u32 bin = 0, rest = left;
      for (; bin < 255 && bins[bin] < rest; bin++) rest -= bins[bin];
      chosen[0] = bin;
      chosen[1] = rest;
      chosen[2] = bins[bin] == rest;
    }
    sync_block();
    digits |= (u64)chosen[0] << shift;
    known |= (u64)255 << shift;
    left = chosen[1];
    if (chosen[2] || shift == 0) break;
  }
  sync_block();
  if (thread == 0) chosen[0] = 0;
  sync_block();
  for (u32 i = thread; i < a.vocab; i += threads) {
    u64 key = key_of(x[i], i);
    if ((key & known) > digits) continue;
    u32 place = atomic_add(chosen, 1);
    if (place < KEYS) keys[place] = key;
  }
  sync_block();
  for (u32 i = thread; i < wanted; i += threads) {
    u32 place = 0;
    for (u32 j = 0; j < wanted; j++) place += keys[j] < keys[i];
    out[SHORT_HEAD + place] = keys[i];
  }
}
