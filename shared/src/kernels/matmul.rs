//! The matrix product that the kernels share. Linear maps themselves stay burn's: a kernel of our own was
//! not faster.

use gemm::Parallelism;

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

/// `dst := scale * a b`, or `dst + scale * a b` when `add`; `dst` is `[m, n]` with rows `dst_rows` apart. On this thread: the
/// kernels share out their tasks themselves.
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
            Parallelism::None,
        );
    }
}
