//! How large pictures may be, and the shapes of what comes: held against the model's config before anything is made of it.

use burn::tensor::Device;
use lacuna_model::host::OnDevice;
use lacuna_model::survey::MOST_PROMPT_TOKENS;
use lacuna_model::unet::UNet;
use lacuna_model::whole::{AddedConditioning, Conditioning, Guidance};
use lacuna_wire::{HostTensor, Message, head};
use serde::de::DeserializeOwned;

use crate::message::{Call, Opening, tensors};
use crate::refusal::{Refusal, Result};

/// SDXL's sizes: the original's, the crop's and the target's rows and columns.
const SIZES: usize = 6;

/// Timesteps are far below, those of trainings with more noise levels too.
const LARGEST_TIMESTEP: f64 = 1e6;

/// The largest sizes of everything.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Batch, rows and columns of latents.
    pub latents: [usize; 3],
    channels: usize,
    context: usize,
    /// Widths of the whole text and of the guidance's embedding, where the model takes them.
    pooled: Option<usize>,
    guidance: Option<usize>,
}

/// What the U-Net is told of a picture.
#[derive(Clone, Debug)]
pub struct Inputs {
    /// Batch, rows and columns of the latents.
    pub latents: [usize; 3],
    context: HostTensor,
    added: Option<(HostTensor, Vec<[f32; SIZES]>)>,
    guidance: Option<Vec<f32>>,
}

impl Inputs {
    /// Tokens of the prompt.
    pub fn tokens(&self) -> usize {
        self.context.shape[1]
    }

    /// The same on `device`.
    ///
    /// # Errors
    /// Those of the device.
    pub fn into_conditioning(self, device: &Device) -> lacuna_model::Result<Conditioning> {
        let added = match self.added {
            Some((pooled, sizes)) => Some(AddedConditioning {
                pooled: pooled.into_device(device)?,
                sizes,
            }),
            None => None,
        };
        Ok(Conditioning {
            context: self.context.into_device(device)?,
            added,
            guidance: self.guidance.map(Guidance::Embedding),
        })
    }
}

impl Bounds {
    /// For pictures of `unet` whose latents are of at most `latents` (batch, rows, columns).
    pub fn new(unet: &UNet, latents: [usize; 3]) -> Self {
        let added = unet.time.added.as_ref();
        let width = |added: &lacuna_model::unet::AddedEmbedding| {
            added.linear_1.d_in.saturating_sub(SIZES * added.channels)
        };
        Self {
            latents,
            channels: unet.in_channels,
            context: unet.context_width,
            pooled: added.map(width),
            guidance: unet.time.guidance.as_ref().map(|map| map.d_in),
        }
    }

    /// Bytes of a request that opens a picture, at most.
    pub fn opening(&self) -> usize {
        let [batch, ..] = self.latents;
        let more = self.pooled.unwrap_or(0) + self.guidance.unwrap_or(0) + SIZES;
        let entry = MOST_PROMPT_TOKENS
            .saturating_mul(self.context)
            .saturating_add(more);
        bytes(batch.saturating_mul(entry))
    }

    /// Bytes of a request for a U-Net call, at most.
    pub fn call(&self) -> usize {
        bytes((self.latents.iter()).fold(self.channels, |all, side| all.saturating_mul(*side)))
    }

    /// What a request to open a picture says.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`]; [`Refusal::Invalid`], naming the tensor and the shape that it must have.
    pub fn read_opening(&self, body: &[u8]) -> Result<Inputs> {
        let mut message: Message<Opening> = read(body)?;
        let latents = message.header.latents;
        let fits = |(side, most): (&usize, &usize)| (1..=*most).contains(side);
        if !latents.iter().zip(&self.latents).all(fits) {
            return Err(Refusal::TooLarge {
                wanted: latents,
                most: self.latents,
            });
        }
        let [batch, ..] = latents;
        let context = take(&mut message, tensors::CONTEXT)?;
        match context.shape[..] {
            [b, 1..=MOST_PROMPT_TOKENS, width] if b == batch && width == self.context => {}
            _ => {
                let want = format!("[{batch}, 1 to {MOST_PROMPT_TOKENS}, {}]", self.context);
                return Err(shape(tensors::CONTEXT, &want, &context));
            }
        }
        let added = match self.pooled {
            Some(width) => {
                let pooled = take_of(&mut message, tensors::POOLED, [batch, width])?;
                let sizes = take_of(&mut message, tensors::SIZES, [batch, SIZES])?;
                Some((pooled, sizes.data.as_chunks::<SIZES>().0.to_vec()))
            }
            None => None,
        };
        let guidance = match self.guidance {
            Some(width) => {
                let mut of_entries = take_of(&mut message, tensors::GUIDANCE, [batch, width])?;
                let own = of_entries.data.split_off((batch - 1) * width);
                if of_entries
                    .data
                    .chunks_exact(width)
                    .any(|other| other != own)
                {
                    let reason = format!(
                        "{} is not the same for all batch entries",
                        tensors::GUIDANCE
                    );
                    return Err(Refusal::Invalid(reason));
                }
                Some(own)
            }
            None => None,
        };
        nothing_left(&message)?;
        Ok(Inputs {
            latents,
            context,
            added,
            guidance,
        })
    }

    /// What a request for a U-Net call of a picture says whose latents are of `latents`.
    ///
    /// # Errors
    /// [`Refusal::Invalid`], naming the tensor and the shape that it must have.
    pub fn read_call(&self, body: &[u8], latents: [usize; 3]) -> Result<(HostTensor, f64)> {
        let mut message: Message<Call> = read(body)?;
        let [batch, rows, columns] = latents;
        let shape = [batch, self.channels, rows, columns];
        let sample = take_of(&mut message, tensors::SAMPLE, shape)?;
        nothing_left(&message)?;
        let timestep = message.header.timestep;
        match timestep.abs() <= LARGEST_TIMESTEP {
            true => Ok((sample, timestep)),
            false => {
                let reason = format!("timestep {timestep}: at most {LARGEST_TIMESTEP}");
                Err(Refusal::Invalid(reason))
            }
        }
    }
}

/// Bytes of so many values in f32, with a head.
fn bytes(values: usize) -> usize {
    values
        .saturating_mul(size_of::<f32>())
        .saturating_add(head::MOST)
}

/// A message whose header is no longer than any.
fn read<H: DeserializeOwned>(body: &[u8]) -> Result<Message<H>> {
    head::len(body)?;
    Ok(Message::decode(body)?)
}

fn take<H>(message: &mut Message<H>, name: &str) -> Result<HostTensor> {
    Ok(message.take(name)?.into_tensor(name)?)
}

fn take_of<H, const D: usize>(
    message: &mut Message<H>,
    name: &str,
    want: [usize; D],
) -> Result<HostTensor> {
    let tensor = take(message, name)?;
    match tensor.shape == want {
        true => Ok(tensor),
        false => Err(shape(name, &format!("{want:?}"), &tensor)),
    }
}

fn shape(name: &str, want: &str, got: &HostTensor) -> Refusal {
    Refusal::Invalid(format!(
        "{name} has shape {:?}; for this model and this picture it must be {want}",
        got.shape
    ))
}

/// What nobody asked for would be ignored without a word.
fn nothing_left<H>(message: &Message<H>) -> Result<()> {
    match message.tensors.keys().next() {
        Some(name) => Err(Refusal::Invalid(format!(
            "this model takes no tensor {name:?}"
        ))),
        None => Ok(()),
    }
}
