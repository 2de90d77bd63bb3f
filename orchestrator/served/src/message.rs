//! What is said beside the tensors: the header of each message, JSON in its `__metadata__` ([`lacuna_wire::Message`]).

use serde::{Deserialize, Serialize};

/// The version of all this. A client of another one is refused by itself.
pub const VERSION: u32 = 1;

/// Names of tensors, as `diffusers` has them.
pub mod tensors {
    /// Latents `[B, C, H, W]`, and the U-Net's output of the same batch, rows and columns.
    pub const SAMPLE: &str = "sample";
    /// The prompt's embedding, `[B, T, D]`.
    pub const CONTEXT: &str = "encoder_hidden_states";
    /// SDXL: the whole texts, `[B, P]`.
    pub const POOLED: &str = "text_embeds";
    /// SDXL: sizes of each picture, `[B, 6]`.
    pub const SIZES: &str = "time_ids";
    /// The guidance scale's embedding, `[B, W]`, for a model that takes it.
    pub const GUIDANCE: &str = "timestep_cond";
}

/// Opens a picture; with [`tensors::CONTEXT`] and those that the model asks for beside.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Opening {
    /// Batch, rows and columns of the latents.
    pub latents: [usize; 3],
}

/// The answer to that, as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Opened {
    /// What the picture is called from now on.
    pub id: String,
    /// What each provider will see of it, in lines; nothing where nobody else computes.
    pub seen: Vec<String>,
}

/// A U-Net call; with [`tensors::SAMPLE`].
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Call {
    /// The timestep, of all batch entries.
    pub timestep: f64,
}

/// The answer to that; with [`tensors::SAMPLE`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Predicted {
    /// What the U-Net took, workers and connection included.
    pub seconds: f64,
    /// Sent to workers, since the picture was opened.
    pub bytes_up: u64,
    /// Received from workers, since then.
    pub bytes_down: u64,
    /// What became of workers that were lost, a line each.
    pub told: Vec<String>,
}
