//! The noise torch draws on a CPU, so that `--seed` means the same picture here and in `diffusers`.
//!
//! Two layers, both part of what a torch seed means:
//!
//! - mt19937, the 32-bit Mersenne Twister (Matsumoto and Nishimura, 1998), seeded with Knuth's
//!   multiplier 1812433253;
//! - the normal transform of Box and Muller (1958), which torch lays out in one of two ways:
//!   tensors of 16 numbers or more in blocks of 16 in `f32`, smaller ones number by number in
//!   `f64`, keeping the second normal of each pair for the next small draw.
//!
//! The bits of the generator are exact. The normals agree to about 1e-6 and not to the bit: torch
//! evaluates logarithm, sine and cosine with vector approximations that depend on the CPU.

/// Words in the state of the Mersenne Twister.
const STATE: usize = 624;
/// Distance between the words that one twist combines.
const SHIFT: usize = 397;
/// Torch fills tensors of at least this many numbers in blocks of this many.
const BLOCK: usize = 16;

/// `torch.Generator("cpu")` and the part of `torch.randn` that reads from it.
///
/// Cloning gives a second generator that will draw the same numbers.
#[derive(Clone)]
pub struct TorchRng {
    /// The twister's words.
    state: [u32; STATE],
    /// The next word to hand out; `STATE` when all are spent and a twist is due.
    next: usize,
    /// The second normal of the last pair that a small draw made, when nothing has used it yet.
    spare: Option<f64>,
}

impl TorchRng {
    /// The generator after `manual_seed(seed)`. Like torch, only the low 32 bits of the seed count.
    pub fn new(seed: u64) -> Self {
        let mut state = [0u32; STATE];
        state[0] = seed as u32;
        for i in 1..STATE {
            let last = state[i - 1];
            state[i] = 1_812_433_253u32
                .wrapping_mul(last ^ (last >> 30))
                .wrapping_add(i as u32);
        }
        Self {
            state,
            next: STATE,
            spare: None,
        }
    }

    /// `n` standard normal numbers: `torch.randn(n, generator=self)` in `f32`, for a tensor of any
    /// shape with `n` elements. Consecutive calls go on where the last one stopped.
    pub fn randn(&mut self, n: usize) -> Vec<f32> {
        if n < BLOCK {
            return (0..n).map(|_| self.normal() as f32).collect();
        }
        let mut out: Vec<f32> = (0..n).map(|_| self.uniform_f32()).collect();
        for block in out.chunks_exact_mut(BLOCK) {
            box_muller(block);
        }
        if !n.is_multiple_of(BLOCK) {
            // A ragged end is not a short block: torch draws the last 16 numbers afresh.
            let last = &mut out[n - BLOCK..];
            last.fill_with(|| self.uniform_f32());
            box_muller(last);
        }
        out
    }

    /// One normal number the way torch makes them for tensors of fewer than 16.
    fn normal(&mut self) -> f64 {
        if let Some(spare) = self.spare.take() {
            return spare;
        }
        let angle = std::f64::consts::TAU * self.uniform_f64();
        let radius = (-2.0 * (-self.uniform_f64()).ln_1p()).sqrt();
        self.spare = Some(radius * angle.sin());
        radius * angle.cos()
    }

    /// A uniform number in [0, 1) from the low 24 bits of one word.
    fn uniform_f32(&mut self) -> f32 {
        const SCALE: f32 = 1.0 / (1u32 << 24) as f32;
        (self.word() & ((1 << 24) - 1)) as f32 * SCALE
    }

    /// A uniform number in [0, 1) from the low 53 bits of two words, the first being the high one.
    fn uniform_f64(&mut self) -> f64 {
        const SCALE: f64 = 1.0 / (1u64 << 53) as f64;
        let high = u64::from(self.word());
        let bits = (high << 32) | u64::from(self.word());
        (bits & ((1 << 53) - 1)) as f64 * SCALE
    }

    /// A uniform number in `0..=most`, as numpy's legacy generator draws it: words of as many bits as
    /// `most` has, until one is not too large. `most` must fit 32 bits.
    pub fn below(&mut self, most: usize) -> usize {
        let mask = most.checked_ilog2().map_or(0, |bits| (2 << bits) - 1);
        loop {
            let drawn = self.word() as usize & mask;
            if drawn <= most {
                return drawn;
            }
        }
    }

    /// The next tempered 32-bit word of the twister.
    fn word(&mut self) -> u32 {
        if self.next == STATE {
            self.twist();
        }
        let mut word = self.state[self.next];
        self.next += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// Replaces all words of the state by the next ones.
    fn twist(&mut self) {
        for i in 0..STATE {
            let joined =
                (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % STATE] & 0x7fff_ffff);
            let odd = if joined & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[i] = self.state[(i + SHIFT) % STATE] ^ (joined >> 1) ^ odd;
        }
        self.next = 0;
    }
}

/// Turns 16 uniform numbers into 16 normal ones in place: the first eight give the radii, the last
/// eight the angles, and number `i` pairs with number `i + 8`.
fn box_muller(block: &mut [f32]) {
    let (radii, angles) = block.split_at_mut(BLOCK / 2);
    for (first, second) in radii.iter_mut().zip(angles) {
        // 1 - u is in (0, 1], which the logarithm can take.
        let radius = (-2.0 * (1.0 - *first).ln()).sqrt();
        let angle = std::f32::consts::TAU * *second;
        *first = radius * angle.cos();
        *second = radius * angle.sin();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_twister_gives_the_published_sequence() {
        // C++ [rand.predef]: the 10000th draw of a default mt19937 (seed 5489).
        let mut rng = TorchRng::new(5489);
        let last = (0..10_000).map(|_| rng.word()).last();
        assert_eq!(last, Some(4_123_659_995));
    }

    #[test]
    fn only_the_low_32_bits_of_a_seed_count() {
        assert_eq!(
            TorchRng::new(7).randn(20),
            TorchRng::new(7 + (1 << 32)).randn(20)
        );
    }

    #[test]
    fn an_empty_draw_leaves_the_stream_alone() {
        let mut rng = TorchRng::new(1);
        assert!(rng.randn(0).is_empty());
        assert_eq!(rng.randn(5), TorchRng::new(1).randn(5));
    }
}
