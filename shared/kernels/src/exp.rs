//! The exponential and what is made of it, as arithmetic that the compiler vectorises.

use super::simd::mul_add;

/// `e^x` to within 2 units in the last place; 0 below -87.3, at most 3e38 above 88.3.
///
/// `x = n ln 2 + r` with `|r| <= ln 2 / 2`; Cody and Waite's split of ln 2 keeps `r` exact, the
/// polynomial is `e^r`'s (the minimax one of Moshier's Cephes, `expf`).
#[inline(always)]
pub fn exp<const FMA: bool>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(-87.3, 88.3);
    let shifted = mul_add::<FMA>(clamped, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = mul_add::<FMA>(n, -LN2_LOW, mul_add::<FMA>(n, -LN2_HIGH, clamped));
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = mul_add::<FMA>(p, r, c);
    }
    let p = mul_add::<FMA>(p, r * r, r) + 1.0;
    // The low bits of `shifted` hold n; moved to the exponent they make 2^n.
    let power = f32::from_bits(shifted.to_bits().wrapping_add(127) << 23);
    let y = p * power;
    if x < -87.3 { 0.0 } else { y }
}

/// `x / (1 + e^-x)`: SiLU.
#[inline(always)]
pub fn silu<const FMA: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FMA>(-x))
}

/// `x (1 + erf(x / sqrt 2)) / 2`: GELU, absolute error below 1e-6.
///
/// By erfc of the absolute value (Abramowitz and Stegun 7.1.26), so that nothing cancels in the
/// negative tail.
#[inline(always)]
pub fn gelu<const FMA: bool>(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / mul_add::<FMA>(0.327_591_1, z, 1.0);
    let mut p = 1.061_405_4;
    for c in [-1.453_152, 1.421_413_7, -0.284_496_74, 0.254_829_6] {
        p = mul_add::<FMA>(p, t, c);
    }
    let erfc = p * t * exp::<FMA>(-z * z);
    let tail = 0.5 * x.abs() * erfc;
    x.max(0.0) - tail
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            for got in [exp::<true>(x), exp::<false>(x)] {
                let error = (f64::from(got) - want).abs() / want;
                assert!(error < 2.5e-7, "exp({x}) is off by {error:.1e}");
            }
        }
        assert_eq!(exp::<true>(0.0), 1.0);
        assert_eq!(exp::<true>(-1e30), 0.0);
        assert_eq!(exp::<true>(f32::NEG_INFINITY), 0.0);
        assert!(exp::<true>(1e30) > 2e38);
        assert!(exp::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn silu_keeps_its_limits() {
        assert_eq!(silu::<true>(100.0), 100.0);
        assert!(silu::<true>(-100.0).abs() < 1e-30);
        assert!(silu::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn gelu_keeps_its_limits() {
        assert_eq!(gelu::<true>(20.0), 20.0);
        assert_eq!(gelu::<true>(-20.0), 0.0);
        assert!(gelu::<true>(f32::NAN).is_nan());
        // erf(1 / sqrt 2) = 0.6826894921370859
        assert!((gelu::<true>(1.0) - 0.841_344_7).abs() < 2e-7);
        assert!((gelu::<true>(-1.0) + 0.158_655_25).abs() < 2e-7);
    }
}
