//! Which layers workers multiply, in the order of the walk, and how large what they are sent is.

use lacuna_kernels::conv::Sizes as Convolution;
use lacuna_model::survey::{Kind, Operation, survey};
use lacuna_model::unet::{CONV_IN, CONV_OUT, Layer, UNet};
use lacuna_shares::pack;
use lacuna_shares::split::capacity;

use crate::error::Result;
use crate::schemes::Sizes;

/// A layer that workers multiply.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// Its tensor prefix.
    pub layer: String,
    /// Batch entries, rows and columns of its input.
    pub input: [usize; 3],
    /// Channels of its input.
    pub c_in: usize,
    /// Rows and columns that the input is enlarged to before; none where it is not.
    pub enlarged: Option<[usize; 2]>,
    /// Sizes of its output, `[B, C, H, W]`.
    pub output: [usize; 4],
    /// Rows and columns of the kernel.
    pub kernel: usize,
    /// Work of a product, multiply and add counted as two.
    pub flop: u64,
}

impl Sent {
    /// Number of features of its input.
    pub fn features(&self) -> usize {
        self.c_in * self.input.iter().product::<usize>()
    }

    /// Number of values of its output.
    pub fn products(&self) -> usize {
        self.output.iter().product()
    }

    /// Sizes of the convolution, of what was enlarged.
    pub fn convolution(&self) -> Convolution {
        let [batch, c_out, rows, columns] = self.output;
        Convolution {
            batch,
            c_in: self.c_in,
            c_out,
            size: [rows, columns],
            kernel: self.kernel,
            stride: 1,
            padding: [self.kernel / 2; 2],
            odd: false,
        }
    }

    /// The same for so many of its batch entries.
    pub fn of_entries(&self, entries: usize) -> Self {
        let [batch, rows, columns] = self.input;
        let [_, c, h, w] = self.output;
        Self {
            input: [entries, rows, columns],
            output: [entries, c, h, w],
            flop: self.flop / batch.max(1) as u64 * entries as u64,
            ..self.clone()
        }
    }

    /// Bytes of so many words of `bits` bits: of an input's share, or of an output's product.
    pub fn bytes(words: usize, bits: u32) -> usize {
        // No picture that a memory holds has more.
        pack::bytes(words, bits).unwrap_or(usize::MAX)
    }

    /// The user's work on the carries, where the input was split for so many workers: what there is room for, whether
    /// there are as many or not.
    pub fn carries_flop(&self, workers: usize) -> u64 {
        let carries = workers.saturating_sub(1) * capacity(self.features());
        let copies = if self.enlarged.is_some() { 4 } else { 1 };
        let [_, c_out, ..] = self.output;
        2 * (carries * copies * self.kernel * self.kernel * c_out) as u64
    }
}

/// The layers that workers multiply: every convolution of three rows and columns that keeps the size of its input, also
/// where that was enlarged before, but for the first, which sees the noisy latents, and the last, which makes little work
/// of many features. A stride of two makes a quarter of the work of as many features sent.
///
/// # Errors
/// None today: shapes alone cannot fail.
pub fn sent(unet: &UNet, sizes: &Sizes) -> Result<Vec<Sent>> {
    let convs = unet.layers().filter_map(|layer| match layer {
        Layer::Conv(conv) => Some(conv),
        _ => None,
    });
    let kept: std::collections::HashSet<&str> = convs
        .filter(|conv| conv.kernel > 1 && conv.stride == 1)
        .map(|conv| conv.name.as_str())
        .filter(|name| ![CONV_IN, CONV_OUT].contains(name))
        .collect();
    let operations = survey(unet, sizes.latents, sizes.tokens)?.into_iter();
    let of = |operation: Operation| {
        let Kind::Conv { kernel } = operation.kind else {
            return None;
        };
        let [batch, c_in, rows, columns] = operation.input;
        let [from_rows, from_columns] = operation.enlarged_from.unwrap_or([rows, columns]);
        kept.contains(operation.layer.as_str()).then(|| Sent {
            input: [batch, from_rows, from_columns],
            c_in,
            enlarged: operation.enlarged_from.map(|_| [rows, columns]),
            output: operation.output,
            kernel,
            flop: operation.flop,
            layer: operation.layer,
        })
    };
    Ok(operations.filter_map(of).collect())
}
