//! The one walk over the blocks: down, across the middle, up.
//!
//! The parts stand by themselves for whoever comes in between: a ControlNet adds to what the way down leaves
//! ([`Residuals`]); whoever keeps the deep part of an earlier step ends the way down and begins the way up at a stage.

use super::{CONV_IN, CONV_OUT, Stage, UNet};
use crate::executor::Executor;

/// What the way down leaves for the way up.
#[derive(Clone, Debug)]
pub struct Descent<F> {
    /// The last feature map.
    pub x: F,
    /// Those that the way up takes along, from fine to coarse: `conv_in`'s, then of every stage its residual blocks'
    /// and, but for the coarsest, its resampling's.
    pub skips: Vec<F>,
}

/// What a ControlNet adds (Zhang et al. 2023; diffusers' `down_block_additional_residuals` and
/// `mid_block_additional_residual`).
#[derive(Clone, Debug)]
pub struct Residuals<F> {
    /// To each of [`Descent::skips`].
    pub skips: Vec<F>,
    /// To the middle's output.
    pub mid: F,
}

impl UNet {
    /// One prediction: the walk over every block.
    ///
    /// `sample` is `[B, in_channels, H, W]`, the result `[B, out_channels, H, W]`.
    ///
    /// # Errors
    /// Those of the executor.
    pub fn forward<E: Executor>(
        &self,
        executor: &mut E,
        sample: &E::Feature,
        timestep: f64,
    ) -> Result<E::Feature, E::Error> {
        self.forward_with(executor, sample, timestep, None)
    }

    /// The same with what a ControlNet adds; residuals beyond those that there are places for are not looked at.
    ///
    /// # Errors
    /// Those of the executor.
    pub fn forward_with<E: Executor>(
        &self,
        executor: &mut E,
        sample: &E::Feature,
        timestep: f64,
        residuals: Option<&Residuals<E::Feature>>,
    ) -> Result<E::Feature, E::Error> {
        let embedding = executor.embed_time(&self.time, timestep)?;
        let mut way = self.down(executor, sample, &embedding, self.down.len())?;
        way.x = self.middle(executor, way.x, &embedding)?;
        if let Some(residuals) = residuals {
            for (skip, residual) in way.skips.iter_mut().zip(&residuals.skips) {
                *skip = executor.add(skip.clone(), residual)?;
            }
            way.x = executor.add(way.x, &residuals.mid)?;
        }
        let x = self.up(executor, way, &embedding, 0..self.up.len())?;
        self.predict(executor, &x)
    }

    /// The first `stages` stages of the way down. Where that is not all of them, it ends before the last one's
    /// resampling.
    ///
    /// # Errors
    /// Those of the executor.
    pub fn down<E: Executor>(
        &self,
        executor: &mut E,
        sample: &E::Feature,
        embedding: &E::Embedding,
        stages: usize,
    ) -> Result<Descent<E::Feature>, E::Error> {
        let mut x = executor.conv(&self.conv_in, sample)?;
        executor.observe(CONV_IN, &x)?;
        let mut skips = vec![x.clone()];
        for (i, stage) in self.down.iter().enumerate().take(stages) {
            for block in 0..stage.resnets.len() {
                x = stage.block(executor, x, embedding, block)?;
                skips.push(x.clone());
            }
            let last_of_some = i + 1 == stages && stages < self.down.len();
            if let Some(conv) = stage.resample.as_ref().filter(|_| !last_of_some) {
                x = executor.conv(conv, &x)?;
                executor.observe(&stage.resample_name(), &x)?;
                skips.push(x.clone());
            }
        }
        Ok(Descent { x, skips })
    }

    /// The middle, at the coarsest level.
    ///
    /// # Errors
    /// Those of the executor.
    pub fn middle<E: Executor>(
        &self,
        executor: &mut E,
        mut x: E::Feature,
        embedding: &E::Embedding,
    ) -> Result<E::Feature, E::Error> {
        for block in 0..self.mid.resnets.len() {
            x = self.mid.block(executor, x, embedding, block)?;
        }
        Ok(x)
    }

    /// Some `stages` of the way up, from `way.x`; `way.skips` are those of all stages from there on. Those that are
    /// left over stay in it.
    ///
    /// # Errors
    /// Those of the executor.
    pub fn up<E: Executor>(
        &self,
        executor: &mut E,
        mut way: Descent<E::Feature>,
        embedding: &E::Embedding,
        stages: std::ops::Range<usize>,
    ) -> Result<E::Feature, E::Error> {
        let mut x = way.x;
        for stage in self.up.get(stages).unwrap_or_default() {
            for block in 0..stage.resnets.len() {
                // The builder made as many blocks on the way up as there are skips.
                if let Some(skip) = way.skips.pop() {
                    x = executor.concat(x, skip)?;
                }
                x = stage.block(executor, x, embedding, block)?;
            }
            if let (Some(conv), Some(like)) = (&stage.resample, way.skips.last()) {
                x = executor.upsample_conv(conv, &x, like)?;
                executor.observe(&stage.resample_name(), &x)?;
            }
        }
        Ok(x)
    }

    /// The prediction, from what the way up gave.
    ///
    /// # Errors
    /// Those of the executor.
    pub fn predict<E: Executor>(
        &self,
        executor: &mut E,
        x: &E::Feature,
    ) -> Result<E::Feature, E::Error> {
        let x = executor.norm_conv(&self.conv_norm_out, &self.conv_out, x)?;
        executor.observe(CONV_OUT, &x)?;
        Ok(x)
    }
}

impl Stage {
    /// The `i`-th residual block, with the transformer behind it where there is one.
    ///
    /// # Errors
    /// Those of the executor.
    pub fn block<E: Executor>(
        &self,
        executor: &mut E,
        x: E::Feature,
        embedding: &E::Embedding,
        i: usize,
    ) -> Result<E::Feature, E::Error> {
        let Some((resnet, transformer)) = self.pairs().nth(i) else {
            return Ok(x);
        };
        let x = resnet.forward(executor, &x, embedding)?;
        match transformer {
            Some(transformer) => transformer.forward(executor, x),
            None => Ok(x),
        }
    }
}
