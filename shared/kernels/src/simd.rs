//! One loop compiled for several vector widths, chosen when it runs.

use std::sync::OnceLock;

/// Defines a function whose body is compiled for AVX-512, for AVX2 with FMA, and for the build's
/// own target; a call takes the widest that the machine has. In the body, `FMA` says whether
/// a fused multiply-add is one instruction (see [`mul_add`]).
#[macro_export]
macro_rules! vectorised {
    ($(#[$doc:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$doc])*
        $vis fn $name($($arg: $type),*) $(-> $ret)? {
            #[inline(always)]
            fn body<const FMA: bool>($($arg: $type),*) $(-> $ret)? $body

            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512dq,avx512bw,avx2,fma")]
                fn wide($($arg: $type),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma")]
                fn middle($($arg: $type),*) $(-> $ret)? {
                    body::<true>($($arg),*)
                }
                match $crate::simd::width() {
                    // SAFETY: `width` found what `wide` is compiled for.
                    $crate::simd::Width::Avx512 | $crate::simd::Width::Vnni => return unsafe { wide($($arg),*) },
                    // SAFETY: `width` found what `middle` is compiled for.
                    $crate::simd::Width::Avx2 => return unsafe { middle($($arg),*) },
                    $crate::simd::Width::Portable => {}
                }
            }
            body::<{ cfg!(target_arch = "aarch64") }>($($arg),*)
        }
    };
}
pub use vectorised;

/// What a loop is compiled for, narrowest first. Of machines other than x86-64 the build's target is all there is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Width {
    /// The build's own target.
    Portable,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512: F, VL, DQ and BW.
    Avx512,
    /// The same with VNNI, which multiplies and adds pairs of small integers at once.
    Vnni,
}

/// The widest that the machine has. For tests of the narrower ones, the environment variable `LACUNA_VECTORS` may say
/// `avx512`, `avx2` or `portable`.
pub fn width() -> Width {
    static WIDTH: OnceLock<Width> = OnceLock::new();
    *WIDTH.get_or_init(|| found().min(allowed(std::env::var("LACUNA_VECTORS").ok().as_deref())))
}

#[cfg(target_arch = "x86_64")]
fn found() -> Width {
    use std::arch::is_x86_feature_detected as has;
    if !(has!("avx2") && has!("fma")) {
        Width::Portable
    } else if !(has!("avx512f") && has!("avx512vl") && has!("avx512dq") && has!("avx512bw")) {
        Width::Avx2
    } else if !has!("avx512vnni") {
        Width::Avx512
    } else {
        Width::Vnni
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn found() -> Width {
    Width::Portable
}

/// The widest that `asked` allows.
fn allowed(asked: Option<&str>) -> Width {
    match asked {
        Some("portable") => Width::Portable,
        Some("avx2") => Width::Avx2,
        Some("avx512") => Width::Avx512,
        _ => Width::Vnni,
    }
}

/// `a * b + c`, fused where that is one instruction (elsewhere a call of the C library).
#[inline(always)]
pub fn mul_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

#[cfg(test)]
mod tests {
    use super::{Width, allowed, width};

    #[test]
    fn the_variable_narrows() {
        assert!(allowed(Some("portable")) < allowed(Some("avx2")));
        assert!(allowed(Some("avx2")) < allowed(Some("avx512")));
        assert!(allowed(Some("avx512")) < allowed(None));
        // What CI sets for another run of these tests is what they run with.
        let asked = std::env::var("LACUNA_VECTORS").ok();
        assert!(width() <= allowed(asked.as_deref()));
        if asked.as_deref() == Some("portable") {
            assert_eq!(width(), Width::Portable);
        }
    }
}
