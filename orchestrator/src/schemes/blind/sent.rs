//! What workers multiply, in the order of the walk, and how large what they are sent is.

use std::borrow::Cow;
use std::collections::HashMap;

use lacuna_kernels::conv::Sizes as Convolution;
use lacuna_model::layers::Conv2d;
use lacuna_model::survey::{Kind, Operation, survey};
use lacuna_model::unet::{CONV_IN, CONV_OUT, Layer, UNet};
use lacuna_shares::Shares;
use lacuna_shares::bands::{Band, Needed, Planes, Rows};
use lacuna_shares::pack;
use lacuna_shares::split::{Extent, capacity};
use lacuna_wire::host::transpose_each;

use super::options::Layers;
use crate::error::Result;
use crate::fleet::client::Product;
use crate::fleet::tally;
use crate::schemes::Sizes;

/// Bytes of a share's band, about: what comes back of it is on its way while the next goes up.
const BAND: usize = 128 << 10;

/// Rows of a band at least: each is multiplied by itself, with the rows around it, and kernels are made ready for each. With
/// half as many a worker takes 4 % longer for SD 1.5 (`--example blind_costs`), and the link a twentieth less.
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
        /// Rows and columns of the output.
        output: [usize; 2],
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
    fn flop_per_number(&self) -> u64 {
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
                ..
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
            Form::Map {
                output: [rows, width],
                ..
            } => Planes {
                number: batch * outputs,
                rows,
                width,
            },
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
            Form::Map {
                output: [rows, columns],
                ..
            } => rows * columns,
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
                ..
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
                kernel, enlarged, ..
            } => kernel * kernel * if enlarged.is_some() { 4 } else { 1 },
            Form::Tokens => 1,
        };
        2 * (carries * each * outputs) as u64
    }
}

/// What workers multiply under a choice of `layers`. Never the first convolution, which sees the noisy latents, the last
/// one, which makes little work of many features, what is made of the prompt, and what is made of the timestep.
///
/// # Errors
/// None today: shapes alone cannot fail.
pub fn sent(unet: &UNet, sizes: &Sizes, layers: Layers) -> Result<Vec<Sent>> {
    let convs: HashMap<&str, &Conv2d> = unet
        .layers()
        .filter_map(|layer| match layer {
            Layer::Conv(conv) => Some((conv.name.as_str(), conv)),
            _ => None,
        })
        .collect();
    let operations = survey(unet, sizes.latents, sizes.tokens)?;
    let mut all = Vec::new();
    let mut rest = &operations[..];
    while let [_, after @ ..] = rest {
        // Queries, keys and values of the same tokens come before their attention.
        let alike = match rest.get(3).map(|attention| attention.kind) {
            Some(Kind::SelfAttention) => &rest[..3],
            _ => &rest[..1],
        };
        match of_operations(alike, &convs).filter(|sent| layers.take(sent)) {
            Some(sent) => {
                rest = &rest[alike.len()..];
                all.push(sent);
            }
            None => rest = after,
        }
    }
    Ok(all)
}

/// What would be sent for `alike` operations, which have one input; none where nothing can be.
fn of_operations(alike: &[Operation], convs: &HashMap<&str, &Conv2d>) -> Option<Sent> {
    let first = alike.first()?;
    let layers = alike.iter().map(|operation| Multiplied {
        layer: operation.layer.clone(),
        outputs: match operation.kind {
            Kind::Linear => operation.output[2],
            _ => operation.output[1],
        },
        flop: operation.flop,
    });
    let layers = layers.collect();
    match first.kind {
        Kind::Conv { kernel } => {
            let conv = convs.get(first.layer.as_str())?;
            let [batch, c_in, high, wide] = first.input;
            let [rows, columns] = first.enlarged_from.unwrap_or([high, wide]);
            let [_, _, h, w] = first.output;
            let inner = ![CONV_IN, CONV_OUT].contains(&first.layer.as_str());
            inner.then_some(Sent {
                layers,
                input: [batch, rows, columns],
                c_in,
                form: Form::Map {
                    kernel,
                    stride: conv.stride,
                    padding: conv.padding,
                    enlarged: first.enlarged_from.map(|_| [high, wide]),
                    output: [h, w],
                },
            })
        }
        Kind::Linear => {
            let [batch, tokens, c_in, _] = first.input;
            // One vector is of the timestep.
            (tokens > 1 && !first.makes_prompt_keys()).then_some(Sent {
                layers,
                input: [batch, tokens, 1],
                c_in,
                form: Form::Tokens,
            })
        }
        _ => None,
    }
}

impl Layers {
    /// Whether workers multiply what would be `sent`.
    fn take(self, sent: &Sent) -> bool {
        match self {
            Self::All => true,
            Self::Work(least) => sent.flop_per_number() >= u64::from(least),
            Self::Convs => match sent.form {
                // A stride of two makes a quarter of the work of as many features sent.
                Form::Map { kernel, stride, .. } => kernel > 1 && stride == 1,
                Form::Tokens => false,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use lacuna_model::config::ConfigReader;
    use lacuna_model::unet::UNetConfig;

    use super::*;

    fn sd15(layers: Layers) -> Vec<Sent> {
        let config = serde_json::json!({"cross_attention_dim": 768});
        let config = UNetConfig::read(ConfigReader::new("sd15", config).unwrap()).unwrap();
        let sizes = Sizes {
            latents: [1, 64, 64],
            levels: 4,
            tokens: 77,
        };
        sent(&config.build(), &sizes, layers).unwrap()
    }

    fn gflop(sent: &[Sent]) -> u64 {
        sent.iter().map(Sent::flop).sum::<u64>() / 1_000_000_000
    }

    /// By the scheme's own table: 47 exchanges and 394 GFLOP; with all linear layers 84 % of 800.
    #[test]
    fn sd15_sends_what_the_design_counts() {
        let convs = sd15(Layers::Convs);
        assert_eq!((convs.len(), gflop(&convs)), (47, 394));
        let all = sd15(Layers::All);
        assert_eq!(gflop(&all), 674);
        let q = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q";
        let qkv = all.iter().find(|sent| sent.name() == q).unwrap();
        assert_eq!(qkv.layers.len(), 3);
        assert_eq!(
            (qkv.features(), qkv.products()),
            (4096 * 320, 3 * 4096 * 320)
        );
        let taken = |name: &str| all.iter().any(|sent| sent.name().contains(name));
        for never in ["attn2.to_k", "time_emb", "conv_in", "conv_out"] {
            assert!(!taken(never), "{never}");
        }
        for also in [
            "downsamplers",
            "conv_shortcut",
            "ff.net.0",
            "ff.net.2",
            "attn2.to_q",
        ] {
            assert!(taken(also), "{also}");
        }
    }

    #[test]
    fn layers_are_taken_by_their_work() {
        let mut before = sd15(Layers::All).len() + 1;
        for least in [0, 500, 1000, 2000, 4000, 8000, 100_000] {
            let some = sd15(Layers::Work(least));
            let work = |sent: &Sent| sent.flop_per_number() >= u64::from(least);
            assert!(some.iter().all(work) && some.len() < before, "{least}");
            before = some.len();
        }
        assert_eq!(before, 0);
        // The 1280-channel convolutions and not those of 320.
        let of = |channels| move |sent: &Sent| sent.c_in == channels;
        let some = sd15(Layers::Work(8000));
        assert!(some.iter().any(of(1280)) && !some.iter().any(of(320)));
    }

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
