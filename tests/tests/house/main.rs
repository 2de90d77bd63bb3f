//! What holds for the sources and the pages.
//!
//! One program for all of them: each program of tests takes half a minute to build.

mod pages;
mod structure;
