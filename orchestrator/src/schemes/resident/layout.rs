//! How one picture's calls lie on the workers.

use lacuna_protocol::placement::Placement;

use crate::schemes::Sizes;

/// Who does what, for latents of one size.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Who does what.
    pub placement: Placement,
    /// Whether the entries of a batch go side by side, each as a lane of its own: one computes while the other
    /// waits for the link.
    pub lanes: bool,
    /// Batch, rows and columns of the latents.
    pub latents: [usize; 3],
    /// Tokens of the prompt.
    pub tokens: usize,
}

impl Layout {
    /// `placement` for calls of `sizes`.
    pub fn new(placement: Placement, lanes: bool, sizes: &Sizes) -> Self {
        Self {
            placement,
            lanes,
            latents: sizes.latents,
            tokens: sizes.tokens,
        }
    }

    /// Number of lanes.
    pub fn lane_count(&self) -> usize {
        let [batch, ..] = self.latents;
        match self.lanes {
            true => batch.max(1),
            false => 1,
        }
    }

    /// The same for one lane.
    pub fn of_lane(self) -> Self {
        let [batch, rows, columns] = self.latents;
        Self {
            latents: [batch / self.lane_count(), rows, columns],
            lanes: false,
            ..self
        }
    }
}
