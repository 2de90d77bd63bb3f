//! What is read of models, and the pictures that they make: those of the reference.
//!
//! One program for all of them: each program of tests takes half a minute to build.

mod adapters;
mod config_keys;
mod demo_in_four;
mod families;
mod goldens_metrics;
mod goldens_text;
mod goldens_vae;
mod model_files;
mod one_file;
mod pictures;
mod pictures_in;
mod previews;
mod prompts;
mod unet;
mod variations;
