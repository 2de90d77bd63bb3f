//! An input that workers multiply: how it lies, how large what travels of it is, and in which bands.

use std::borrow::Cow;

use lacuna_kernels::conv::Sizes as Convolution;
use lacuna_shares::Shares;
use lacuna_shares::bands::{Band, Needed, Planes, Rows};
use lacuna_shares::pack;
use lacuna_shares::split::{Extent, capacity};
use lacuna_wire::host::transpose_each;

use crate::error::Result;
use crate::fleet::client::Product;
use crate::fleet::tally;

/// Bytes of a share's band, about: what comes back of it is on its way while the next goes up.
const BAND: usize = 128 << 10;

/// Rows of a band at least: each is multiplied by itself, with the rows around it, and kernels are made ready for each. In
/// four bands of 16 a worker took 1.08 to 1.10 times what the layers of SD 1.5 take, in place of 1.05 (`--example
/// blind_costs`), and the link 3 % less (`lacuna cost`).
const ROWS: usize = 20;

/// Most bands; more would not save more.
const MOST: usize = 3;

/// An input that workers multiply with the weights of a layer, or of several that have the same input.
#[derive(Clone, Debug, PartialEq)]
pub struct Sent {
    /// The layers.
    pub layers: Vec<Multiplied>,
    /// Batch entries, rows and columns of the input; of tokens their number and 1.
    pub input: [usize; 3],
    /// Channels of the input.
    pub c_in: usize,
    /// How it lies.
    pub form: Form,
}

/// A layer that workers multiply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Multiplied {
    /// Its tensor prefix.
    pub layer: String,
    /// Channels of its output.
    pub outputs: usize,
    /// Work of a product, multiply and add counted as two.
    pub flop: u64,
}

/// How an input lies, and what a layer makes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// `[B, C, H, W]`, of a convolution.
    Map {
        /// Rows and columns of the kernel.
        kernel: usize,
        /// Step between outputs.
        stride: usize,
        /// Zeros on each side.
        padding: usize,
        /// Rows and columns that the input is enlarged to before; none where it is not.
        enlarged: Option<[usize; 2]>,
    },
    /// `[B, T, C]`, of a linear map.
    Tokens,
}

impl Sent {
    /// The name of what is sent: its first layer's.
    pub fn name(&self) -> &str {
        self.layers.first().map_or("", |layer| &layer.layer)
    }

    /// Under which kind of layer it counts.
    pub fn kind(&self) -> tally::Kind {
        match self.form {
            Form::Map { .. } => tally::Kind::Conv,
            Form::Tokens => tally::Kind::Linear,
        }
    }

    /// Rows and columns of the kernel; of a linear map one.
    pub fn kernel(&self) -> usize {
        match self.form {
            Form::Map { kernel, .. } => kernel,
            Form::Tokens => 1,
        }
    }

    /// Number of features of the input.
    pub fn features(&self) -> usize {
        self.c_in * self.input.iter().product::<usize>()
    }

    /// Number of values of the outputs of all layers.
    pub fn products(&self) -> usize {
        let each = self.layers.iter();
        each.map(|layer| self.output(layer.outputs).values()).sum()
    }

    /// Work of the products with all layers.
    pub fn flop(&self) -> u64 {
        self.layers.iter().map(|layer| layer.flop).sum()
    }

    /// Work for each number that travels, of the input and the outputs.
    pub fn flop_per_number(&self) -> u64 {
        self.flop() / (self.features() + self.products()).max(1) as u64
    }

    /// Sizes of the convolution with so many outputs; tokens are the pixels of one row.
    pub fn convolution(&self, outputs: usize) -> Convolution {
        let [batch, rows, columns] = self.input;
        let (size, kernel, stride, padding) = match self.form {
            Form::Map {
                kernel,
                stride,
                padding,
                enlarged,
            } => (enlarged.unwrap_or([rows, columns]), kernel, stride, padding),
            Form::Tokens => ([1, rows], 1, 1, 0),
        };
        Convolution {
            batch,
            c_in: self.c_in,
            c_out: outputs,
            size,
            kernel,
            stride,
            padding: [padding; 2],
            odd: false,
        }
    }

    /// An input as [`Self::convolution`] takes it: enlarged, or with its channels first.
    pub fn as_map<'a>(&self, x: &'a [f32]) -> Cow<'a, [f32]> {
        match self.form {
            Form::Map { enlarged, .. } => self.enlarged(x, enlarged),
            Form::Tokens => transpose_each(x, self.input[1], self.c_in).into(),
        }
    }

    /// Maps as a kernel meets them, but for the zeros around.
    pub fn enlarged<'a, T: Copy + Default>(
        &self,
        x: &'a [T],
        size: Option<[usize; 2]>,
    ) -> Cow<'a, [T]> {
        let Some([high, wide]) = size else {
            return x.into();
        };
        let whole = Needed {
            input: 0..self.input[1],
            enlarged: [0, high],
            zeros: [0, 0],
        };
        self.planes().padded(x, &whole, Some(wide)).1.into()
    }

    /// An output of [`Self::convolution`] as it lies.
    pub fn of_map(&self, y: Vec<f32>, outputs: usize) -> Vec<f32> {
        match self.form {
            Form::Map { .. } => y,
            Form::Tokens => transpose_each(&y, outputs, self.input[1]),
        }
    }

    /// What the step size of an input follows from.
    ///
    /// # Errors
    /// [`lacuna_shares::Error::NotFinite`].
    pub fn extent(&self, x: &[f32]) -> Result<Extent> {
        let [_, rows, columns] = self.input;
        Ok(match self.form {
            Form::Map {
                kernel, enlarged, ..
            } => Extent::of_windows(x, [self.c_in, rows, columns], kernel, enlarged)?,
            Form::Tokens => Extent::of_tokens(x, self.c_in)?,
        })
    }

    /// The input as rows.
    pub fn planes(&self) -> Planes {
        let [batch, rows, columns] = self.input;
        match self.form {
            Form::Map { .. } => Planes {
                number: batch * self.c_in,
                rows,
                width: columns,
            },
            Form::Tokens => Planes {
                number: batch,
                rows,
                width: self.c_in,
            },
        }
    }

    /// An output of so many channels as rows.
    pub fn output(&self, outputs: usize) -> Planes {
        let [batch, tokens, _] = self.input;
        match self.form {
            Form::Map { .. } => {
                let [rows, width] = self.convolution(outputs).out_size();
                Planes {
                    number: batch * outputs,
                    rows,
                    width,
                }
            }
            Form::Tokens => Planes {
                number: batch,
                rows: tokens,
                width: outputs,
            },
        }
    }

    /// Values of each output, one after the other: a map's pixels, and one of a token's.
    pub fn values(&self) -> usize {
        match self.form {
            Form::Map { .. } => self.convolution(1).out_size().iter().product(),
            Form::Tokens => 1,
        }
    }

    /// Into how many bands the words of an input are cut, of so many bits each.
    pub fn bands_at(&self, bits: u32) -> usize {
        let bytes = self.features() * bits as usize / 8;
        let [_, rows, _] = self.input;
        (bytes / BAND).min(rows / ROWS).clamp(1, MOST)
    }

    /// Bands of so many.
    ///
    /// # Errors
    /// [`lacuna_shares::Error::Bands`].
    pub fn bands(&self, number: usize) -> Result<Vec<Band>> {
        Ok(self.rows().bands(number)?)
    }

    /// How rows of the outputs follow from those of the input.
    pub fn rows(&self) -> Rows {
        let [_, rows, _] = self.input;
        match self.form {
            Form::Map {
                kernel,
                stride,
                padding,
                enlarged,
            } => Rows {
                input: rows,
                enlarged: enlarged.map_or(rows, |[rows, _]| rows),
                kernel,
                stride,
                padding,
            },
            Form::Tokens => Rows::of_tokens(rows),
        }
    }

    /// Bytes of the words of an input in these bands.
    pub fn bytes_up(&self, bands: &[Band], bits: u32) -> usize {
        let rows = bands.iter().map(|band| band.input.clone());
        // No picture that a memory holds has more.
        self.planes().bytes(rows, bits).unwrap_or(usize::MAX)
    }

    /// Bytes of the words of all products in these bands.
    pub fn bytes_down(&self, bands: &[Band], bits: u32) -> usize {
        let each = self.layers.iter().map(|layer| {
            let rows = bands.iter().map(|band| band.output.clone());
            self.output(layer.outputs).bytes(rows, bits)
        });
        each.sum::<Option<usize>>().unwrap_or(usize::MAX)
    }

    /// The words of each product, of `packed` ones of so many bits in these bands.
    ///
    /// # Errors
    /// [`lacuna_shares::Error::Length`] for other bytes than theirs.
    pub fn read(&self, packed: &[u8], bands: &[Band], bits: u32) -> Result<Vec<Vec<i32>>> {
        let planes = self.layers.iter().map(|layer| self.output(layer.outputs));
        let mut words: Vec<(Planes, Vec<i32>)> =
            planes.map(|planes| (planes, Vec::new())).collect();
        let mut rest = packed;
        for band in bands {
            for (planes, words) in &mut words {
                rest = planes.unpack(words, &band.output, rest, bits)?;
            }
        }
        // What follows would be somebody's, and nobody's.
        pack::unpack(rest, 0, bits)?;
        Ok(words.into_iter().map(|(_, words)| words).collect())
    }

    /// What a worker is asked for, in these bands, of words of so many bits.
    pub fn product(&self, bands: &[Band], bits: u32) -> Product {
        let layers = self.layers.iter();
        Product {
            kind: self.kind(),
            layers: layers.map(|layer| layer.layer.clone()).collect(),
            input: self.input,
            enlarged: match self.form {
                Form::Map { enlarged, .. } => enlarged,
                Form::Tokens => None,
            },
            bands: bands.len(),
            bytes: self.bytes_down(bands, bits),
        }
    }

    /// The same for so many of its batch entries.
    pub fn of_entries(&self, entries: usize) -> Self {
        let [batch, rows, columns] = self.input;
        let layers = self.layers.iter().map(|layer| Multiplied {
            flop: layer.flop / batch.max(1) as u64 * entries as u64,
            ..layer.clone()
        });
        Self {
            input: [entries, rows, columns],
            layers: layers.collect(),
            ..self.clone()
        }
    }

    /// The user's work on the carries, where the input was split into `shares` for so many workers: what there is room for,
    /// whether there are as many or not. Shares of a ring have none.
    pub fn carries_flop(&self, shares: Shares, workers: usize) -> u64 {
        let Shares::Carry(precision) = shares else {
            return 0;
        };
        let room = capacity(self.features(), precision);
        let carries = workers.saturating_sub(1) * room;
        let outputs: usize = self.layers.iter().map(|layer| layer.outputs).sum();
        let each = match self.form {
            Form::Map {
                kernel,
                stride,
                enlarged,
                ..
            } => kernel.div_ceil(stride.max(1)).pow(2) * if enlarged.is_some() { 4 } else { 1 },
            Form::Tokens => 1,
        };
        2 * (carries * each * outputs) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Layers;
    use super::super::placement::tests::sd15;

    #[test]
    fn large_inputs_are_cut_into_bands() {
        let convs = sd15(Layers::Convs);
        let bands = |rows| {
            let of = convs.iter().filter(|sent| sent.input[1] == rows);
            let each = of.map(|sent| sent.bands_at(12));
            each.fold((usize::MAX, 0), |(least, most), n| {
                (least.min(n), most.max(n))
            })
        };
        assert_eq!(bands(64), (3, 3));
        assert_eq!(bands(8), (1, 1));
        for sent in &convs {
            let bands = sent.bands(sent.bands_at(12)).unwrap();
            // A band's last byte is its own, and no more.
            let whole = sent.features() * 12 / 8;
            let got = sent.bytes_up(&bands, 12);
            assert!(
                (whole..whole + bands.len()).contains(&got),
                "{}",
                sent.name()
            );
        }
    }
}
