//! Matrix products.

use gemm::Parallelism;
use rayon::prelude::*;

use super::filled;
use super::simd::vectorised;

/// A matrix inside a buffer: where it starts and how far apart its rows and columns are.
#[derive(Clone, Copy)]
pub(super) struct View {
    /// The element of row 0, column 0.
    pub start: *const f32,
    /// Distance between rows.
    pub rows: usize,
    /// Distance between columns.
    pub columns: usize,
}

/// `dst := scale * a b`, or `dst + scale * a b` when `add`; `dst` is `[m, n]` with rows `dst_rows` apart, on
/// `parallelism` threads.
///
/// # Safety
/// `dst` must be valid for writes and, when `add`, initialised; `a` `[m, k]` and `b` `[k, n]` valid for
/// reads; no other thread may use `dst`.
#[allow(clippy::too_many_arguments)]
pub(super) unsafe fn product(
    [m, n, k]: [usize; 3],
    dst: *mut f32,
    dst_rows: usize,
    add: bool,
    a: View,
    b: View,
    scale: f32,
    parallelism: Parallelism,
) {
    // SAFETY: the caller's promise; strides are lengths inside a slice, below isize::MAX.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            dst,
            1,
            dst_rows as isize,
            add,
            a.start,
            a.columns as isize,
            a.rows as isize,
            b.start,
            b.columns as isize,
            b.rows as isize,
            1.0,
            scale,
            false,
            false,
            false,
            parallelism,
        );
    }
}

vectorised! {
    fn add_row(y: &mut [f32], bias: &[f32]) {
        for (y, b) in y.iter_mut().zip(bias) {
            *y += b;
        }
    }
}

/// `x W^T + bias` of rows: `x` is `[rows, d_in]`, `weight` `[d_out, d_in]` as stored, the result
/// `[rows, d_out]`.
///
/// # Panics
/// When the sizes do not agree.
pub fn linear(
    x: &[f32],
    weight: &[f32],
    bias: Option<&[f32]>,
    d_in: usize,
    d_out: usize,
) -> Vec<f32> {
    assert_eq!(weight.len(), d_in * d_out, "weight of a linear map");
    assert!(
        bias.is_none_or(|b| b.len() == d_out),
        "bias of a linear map"
    );
    let rows = x.len() / d_in;
    assert_eq!(x.len(), rows * d_in, "input of a linear map");
    filled(rows * d_out, |out| {
        // SAFETY: the three buffers have the sizes asserted; nobody else has the result.
        unsafe {
            product(
                [rows, d_out, d_in],
                out.at(0, rows * d_out),
                d_out,
                false,
                View {
                    start: x.as_ptr(),
                    rows: d_in,
                    columns: 1,
                },
                View {
                    start: weight.as_ptr(),
                    rows: 1,
                    columns: d_in,
                },
                1.0,
                Parallelism::Rayon(0),
            );
        }
        if let Some(bias) = bias {
            // SAFETY: the product has written all of it.
            let all = unsafe { out.slice(0, rows * d_out) };
            all.par_chunks_mut(d_out.max(1) * 64).for_each(|block| {
                block.chunks_exact_mut(d_out).for_each(|y| add_row(y, bias));
            });
        }
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::{difference, wave};
    use super::*;

    #[test]
    fn linear_is_the_formula() {
        for (rows, d_in, d_out) in [
            (1, 7, 5),
            (1, 320, 1280),
            (77, 33, 129),
            (301, 513, 67),
            (0, 4, 4),
        ] {
            let (x, weight, bias) = (
                wave(rows * d_in, 0.1),
                wave(d_out * d_in, 0.5),
                wave(d_out, 0.9),
            );
            for bias in [None, Some(bias.as_slice())] {
                let got = linear(&x, &weight, bias, d_in, d_out);
                let mut want = Vec::new();
                for x in x.chunks(d_in) {
                    for (o, w) in weight.chunks(d_in).enumerate() {
                        let dot: f64 = x
                            .iter()
                            .zip(w)
                            .map(|(a, b)| f64::from(*a) * f64::from(*b))
                            .sum();
                        want.push(dot + bias.map_or(0.0, |b| f64::from(b[o])));
                    }
                }
                if rows > 0 {
                    let off = difference(&got, &want);
                    assert!(off < 1e-6, "{rows} {d_in} {d_out}: {off}");
                }
            }
        }
    }
}
