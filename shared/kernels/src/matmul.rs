//! The matrix product that the kernels share. Linear maps themselves stay burn's: a kernel of our own was
//! not faster.

use gemm::Parallelism;

/// A matrix inside a buffer: where it starts and how far apart its rows and columns are.
#[derive(Clone, Copy)]
pub(super) struct Matrix {
    /// The element of row 0, column 0.
    pub start: *const f32,
    /// Distance between rows.
    pub rows: usize,
    /// Distance between columns.
    pub columns: usize,
}

/// Longest sum that is taken at once. The library cuts longer ones by the size of the whole product;
/// cut here, the bits of an element do not depend on how many others are computed with it.
const DEPTH: usize = 512;

/// Elements up to which the library would sum along the depth in parallel, in another order than for
/// larger products.
const SMALL: usize = 256;

/// Cuts `depth` terms into parts of nearly the same length, at most `most`: the length of all but
/// the last.
pub(super) fn even_part(depth: usize, most: usize) -> usize {
    depth.div_ceil(depth.div_ceil(most).max(1)).max(1)
}

/// `dst := scale * a b`, or `dst + scale * a b` when `add`; `dst` is `[m, n]` with rows `dst_rows` apart. On this thread: the
/// kernels share out their tasks themselves.
///
/// # Safety
/// `dst` must be valid for writes and, when `add`, initialised; `a` `[m, k]` and `b` `[k, n]` valid for
/// reads; no other thread may use `dst`.
pub(super) unsafe fn product(
    [m, n, k]: [usize; 3],
    dst: *mut f32,
    dst_rows: usize,
    add: bool,
    a: Matrix,
    b: Matrix,
    scale: f32,
) {
    let part = even_part(k, DEPTH);
    for from in (0..k).step_by(part) {
        let sizes = [m, n, part.min(k - from)];
        let add = add || from > 0;
        // SAFETY: the caller's promise, for a part of the depth.
        unsafe {
            let a = Matrix {
                start: a.start.add(from * a.columns),
                ..a
            };
            let b = Matrix {
                start: b.start.add(from * b.rows),
                ..b
            };
            if n == 1 || m * n <= SMALL {
                small_part(sizes, dst, dst_rows, add, a, b, scale);
            } else {
                product_of_part(sizes, dst, dst_rows, add, a, b, scale);
            }
        }
    }
}

/// [`product_of_part`] by way of copies whose layout, and at least two columns, lead the library to
/// the order of sums that larger products have.
///
/// # Safety
/// As [`product`].
unsafe fn small_part(
    [m, n, k]: [usize; 3],
    dst: *mut f32,
    dst_rows: usize,
    add: bool,
    a: Matrix,
    b: Matrix,
    scale: f32,
) {
    let columns = n.max(2);
    let mut right = vec![0f32; k * columns];
    let mut out = vec![0f32; m * columns];
    // SAFETY: the caller's promise; the copies have the sizes that are said of them.
    unsafe {
        for (i, row) in right.chunks_exact_mut(columns).enumerate() {
            for (j, x) in row.iter_mut().enumerate().take(n) {
                *x = *b.start.add(i * b.rows + j * b.columns);
            }
        }
        if add {
            for (i, row) in out.chunks_exact_mut(columns).enumerate() {
                row[..n].copy_from_slice(std::slice::from_raw_parts(dst.add(i * dst_rows), n));
            }
        }
        let right = Matrix {
            start: right.as_ptr(),
            rows: columns,
            columns: 1,
        };
        product_of_part(
            [m, columns, k],
            out.as_mut_ptr(),
            columns,
            add,
            a,
            right,
            scale,
        );
        for (i, row) in out.chunks_exact(columns).enumerate() {
            dst.add(i * dst_rows)
                .copy_from_nonoverlapping(row.as_ptr(), n);
        }
    }
}

/// [`product`] of a depth of at most [`DEPTH`].
///
/// # Safety
/// As [`product`].
unsafe fn product_of_part(
    [m, n, k]: [usize; 3],
    dst: *mut f32,
    dst_rows: usize,
    add: bool,
    a: Matrix,
    b: Matrix,
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
