//! Sizes of a convolution.

/// Sizes of a convolution over `[B, C_in, H, W]`.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// Batch entries.
    pub batch: usize,
    /// Input channels.
    pub c_in: usize,
    /// Output channels.
    pub c_out: usize,
    /// Input rows and columns.
    pub size: [usize; 2],
    /// Rows (and columns) of the kernel.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Zeros on each side: above and below, left and right.
    pub padding: [usize; 2],
    /// Whether the first output row is an odd one of the whole map: rows are computed in pairs, and
    /// a strip must pair them as the whole does.
    pub odd: bool,
}

impl Sizes {
    /// Output rows and columns.
    pub fn out_size(&self) -> [usize; 2] {
        std::array::from_fn(|i| {
            let padded = self.size[i] + 2 * self.padding[i];
            if padded < self.kernel {
                0
            } else {
                (padded - self.kernel) / self.stride + 1
            }
        })
    }

    pub(crate) fn out_pixels(&self) -> usize {
        let [h, w] = self.out_size();
        h * w
    }

    /// Whether the patches are the input itself.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.padding == [0, 0]
    }
}
