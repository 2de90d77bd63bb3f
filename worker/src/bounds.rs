//! What the largest picture that a worker accepts bounds: every size that comes over the wire is held against
//! it before anything is allocated for it.

use std::collections::HashMap;
use std::ops::Range;

use lacuna_model::layers::Conv2d;
use lacuna_model::partition::Levels;
use lacuna_model::survey::{Kind, MOST_PROMPT_TOKENS, survey};
use lacuna_model::unet::{Layer, UNet};
use lacuna_protocol::exchange::Assignment;
use lacuna_protocol::session::Work;
use lacuna_shares::bands::{Planes, Rows};
use lacuna_wire::HostTensor;

use crate::error::{Error, Result};
use crate::model::Model;

/// Most parts that an attention is cut into: more than any fleet has workers.
const MAX_PARTS: usize = 1024;

/// Most rows or columns of latents: more than anybody's memory holds the attention of.
pub const MAX_SIDE: usize = 8192;

/// Most batch entries.
pub const MAX_BATCH: usize = 64;

/// Rows that a strip of a convolution's input brings beside its own: those of its neighbours, and what an odd
/// number of rows rounds up to at a stride of two.
const HALO: usize = 3;

/// The largest sizes of everything.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Of the latents: batch entries, rows, columns.
    pub latents: [usize; 3],
    /// Bytes of one request.
    pub body_bytes: usize,
    levels: usize,
    layers: HashMap<String, Largest>,
    /// Values that one layer makes of the largest picture, at most.
    output: usize,
}

/// The largest input of a layer, for the largest picture.
#[derive(Clone, Debug)]
enum Largest {
    /// Of a convolution: `[B, C, H, W]`.
    Conv(Conv2d, [usize; 4]),
    /// Of a norm: `[B, C, H, W]`.
    Norm([usize; 4]),
    /// Of an attention: queries `[B, T, C]`, and tokens that they attend to.
    Attention([usize; 3], usize),
    /// Of a linear map: `[B, T, D]`, and the width of its output.
    Linear([usize; 3], usize),
}

/// A share of a layer's input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// It as rows.
    pub input: Planes,
    /// How rows of the output follow from it.
    pub rows: Rows,
    /// The output as rows.
    pub output: Planes,
}

impl Bounds {
    /// For `model` and latents of at most `latents` (batch, rows, columns), of which a machine of `memory` bytes
    /// must hold the largest request, with what it becomes and what is made of it.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the latents are none, or larger than that.
    pub fn new(model: &Model, latents: [usize; 3], memory: Option<u64>) -> Result<Self> {
        let [batch, rows, columns] = latents;
        let limits = [
            ("batch entries", batch, MAX_BATCH),
            ("rows", rows, MAX_SIDE),
            ("columns", columns, MAX_SIDE),
        ];
        for (what, value, most) in limits {
            if !(1..=most).contains(&value) {
                let reason = format!("latents of at most {value} {what}; it must be 1 to {most}");
                return Err(Error::Invalid(reason));
            }
        }
        let body_bytes = model.largest_request(latents)?;
        let needed = 3 * body_bytes as u64;
        if let Some(memory) = memory.filter(|memory| needed > *memory) {
            return Err(Error::Invalid(format!(
                "latents of at most {batch} x {rows} x {columns} (batch, rows, columns) take {:.1} GB of memory, \
                 this machine has {:.1} GB; take fewer",
                needed as f64 / 1e9,
                memory as f64 / 1e9
            )));
        }
        let (layers, output) = largest(model.unet(), latents)?;
        Ok(Self {
            latents,
            body_bytes,
            levels: model.unet().levels(),
            layers,
            output,
        })
    }

    /// That a strip is one, of latents that are not too large.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming what is not.
    pub fn check_assignment(&self, assignment: &Assignment) -> Result<()> {
        let wanted = [assignment.batch, assignment.rows, assignment.columns];
        let most = self.latents;
        let fits = wanted
            .iter()
            .zip(most)
            .all(|(w, most)| (1..=most).contains(w));
        if !fits || !(1..=MOST_PROMPT_TOKENS).contains(&assignment.tokens) {
            return Err(Error::Invalid(format!(
                "latents of {wanted:?} (batch, rows, columns) and {} tokens; this worker takes at most \
                 {most:?} and {MOST_PROMPT_TOKENS}; see its --max-batch, --max-rows and --max-columns",
                assignment.tokens
            )));
        }
        let levels = Levels::new(assignment.rows, self.levels);
        let Range { start, end } = assignment.strip;
        if start >= end || end > levels.coarsest() {
            return Err(Error::Invalid(format!(
                "a strip of rows {start}..{end} of the {} at the coarsest level",
                levels.coarsest()
            )));
        }
        for part in [assignment.tile.queries, assignment.tile.keys] {
            if part.index >= part.of || part.of > MAX_PARTS {
                let reason = format!("part {} of {} of an attention", part.index, part.of);
                return Err(Error::Invalid(reason));
            }
        }
        Ok(())
    }

    /// A share of the input of `layer`, of so many batch entries, rows and columns (of tokens their number and 1), which is
    /// `enlarged` before to so many rows and columns: one that the largest picture could have.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the layer and the sizes.
    pub fn check_share(
        &self,
        layer: &str,
        input: [usize; 3],
        enlarged: Option<[usize; 2]>,
    ) -> Result<Share> {
        let [batch, rows, columns] = input;
        let wrong = |most: &dyn std::fmt::Debug| {
            Err(Error::Invalid(format!(
                "an input of {layer} of {input:?} (batch, rows, columns), enlarged to {enlarged:?}; for the largest \
                 picture that this worker takes it is {most:?}"
            )))
        };
        match self.layers.get(layer) {
            Some(Largest::Conv(conv, [b, c, h, w])) => {
                // Every row twice, but for the last where their number is odd.
                let twice = |[to, from]: [usize; 2]| to.div_ceil(2) == from;
                let [high, wide] = enlarged.unwrap_or([rows, columns]);
                let doubled =
                    enlarged.is_none() || [[high, rows], [wide, columns]].map(twice) == [true; 2];
                let within = |(n, most): (usize, &usize)| (1..=*most).contains(&n);
                let fits = [batch, high, wide].into_iter().zip([b, h, w]).all(within);
                if !(doubled && fits) {
                    return wrong(&[b, &conv.c_in, h, w]);
                }
                let (kernel, stride, padding) = (conv.kernel, conv.stride, conv.padding);
                Ok(Share {
                    input: Planes {
                        number: batch * c,
                        rows,
                        width: columns,
                    },
                    rows: Rows {
                        input: rows,
                        enlarged: high,
                        kernel,
                        stride,
                        padding,
                    },
                    output: Planes {
                        number: batch * conv.c_out,
                        rows: conv.out_size(high),
                        width: conv.out_size(wide),
                    },
                })
            }
            Some(Largest::Linear([b, t, d], outputs)) => {
                let fits = (1..=*b).contains(&batch) && (1..=*t).contains(&rows) && columns == 1;
                if !fits || enlarged.is_some() {
                    return wrong(&[b, t]);
                }
                let planes = |width| Planes {
                    number: batch,
                    rows,
                    width,
                };
                Ok(Share {
                    input: planes(*d),
                    rows: Rows::of_tokens(rows),
                    output: planes(*outputs),
                })
            }
            _ => Err(Error::Invalid(format!(
                "the model has no layer {layer:?} that shares are multiplied with"
            ))),
        }
    }

    /// That each piece of `work` has inputs that the largest picture could have, and that all outputs together
    /// are no more than one layer's. A layer that there is not, or with tensors of other axes, is left to
    /// [`Model::run`], which refuses it.
    ///
    /// # Errors
    /// [`Error::Invalid`], naming the layer and the sizes.
    pub fn check_work<'a>(
        &self,
        work: impl IntoIterator<Item = &'a (Work, Vec<HostTensor>)>,
    ) -> Result<()> {
        let mut output = 0usize;
        for (work, inputs) in work {
            let Some(largest) = self.layers.get(work.layer()) else {
                continue;
            };
            output = output.saturating_add(check_inputs(work.layer(), largest, inputs)?);
        }
        self.check_output(output)
    }

    /// That so many values are no more than one layer's output of the largest picture.
    ///
    /// # Errors
    /// [`Error::Invalid`], with both numbers.
    pub fn check_output(&self, values: usize) -> Result<()> {
        match values <= self.output {
            true => Ok(()),
            false => Err(Error::Invalid(format!(
                "the outputs of one request are {values} values together; this worker gives at most {} at a time",
                self.output
            ))),
        }
    }
}

/// The number of values that the layer makes of `inputs`.
fn check_inputs(layer: &str, largest: &Largest, inputs: &[HostTensor]) -> Result<usize> {
    let check = |got: &HostTensor, most: &[usize]| {
        // Another number of axes or channels is not larger but wrong, which the model says.
        let channels = if most.len() == 4 { 1 } else { 2 };
        let mut axes = got.shape.iter().zip(most).enumerate();
        if got.shape.len() != most.len() || axes.all(|(i, (g, m))| i == channels || g <= m) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "the input of {layer} has shape {:?}; for the largest picture that this worker takes it is {most:?}; \
             see its --max-batch, --max-rows and --max-columns",
            got.shape
        )))
    };
    let first = inputs.first().map_or(&[][..], |x| &x.shape);
    match (largest, first) {
        (Largest::Conv(conv, [b, c, h, w]), &[batch, _, rows, columns]) => {
            check(&inputs[0], &[*b, *c, h + HALO, *w])?;
            let rows = rows.saturating_sub(conv.kernel) / conv.stride + 1;
            Ok(batch * conv.c_out * rows * conv.out_size(columns))
        }
        (Largest::Norm([b, c, h, w]), [_, _, _, _]) => {
            check(&inputs[0], &[*b, *c, h + HALO, *w])?;
            Ok(0)
        }
        (Largest::Attention([b, t, c], keys), &[batch, queries, width]) => {
            check(&inputs[0], &[*b, *t, *c])?;
            for keys_or_values in &inputs[1..] {
                check(keys_or_values, &[*b, *keys, *c])?;
            }
            Ok(batch * queries * width)
        }
        _ => Ok(0),
    }
}

/// The largest input of every layer that can be asked for, and the most values that one of them makes.
fn largest(unet: &UNet, latents: [usize; 3]) -> Result<(HashMap<String, Largest>, usize)> {
    let mut convs: HashMap<&str, &Conv2d> = HashMap::new();
    for layer in unet.layers() {
        if let Layer::Conv(conv) = layer {
            convs.insert(&conv.name, conv);
        }
    }
    let mut layers = HashMap::new();
    let mut most = 0;
    for operation in survey(unet, latents, MOST_PROMPT_TOKENS)? {
        let input = operation.input;
        let [b, t, c, _] = input;
        let largest = match (operation.kind, convs.get(operation.layer.as_str())) {
            (Kind::Conv { .. }, Some(conv)) => Largest::Conv((*conv).clone(), input),
            (Kind::GroupNorm, _) => Largest::Norm(input),
            (Kind::SelfAttention, _) => Largest::Attention([b, t, c], t),
            (Kind::CrossAttention, _) => Largest::Attention([b, t, c], MOST_PROMPT_TOKENS),
            (Kind::Linear, _) => Largest::Linear([b, t, c], operation.output[2]),
            _ => continue,
        };
        most = most.max(operation.output.iter().product());
        layers.insert(operation.layer, largest);
    }
    Ok((layers, most))
}
