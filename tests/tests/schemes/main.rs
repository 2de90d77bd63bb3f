//! Wherever the U-Net is computed: the same picture, and who sees what of it.
//!
//! One program for all of them: each program of tests takes half a minute to build.

mod audit;
mod blind;
mod blind_bands;
mod blind_streams;
mod blind_view;
mod denoiser;
mod eval;
mod own_part;
mod policy;
mod resident;
mod served;
mod split;
mod toy_scheme;
