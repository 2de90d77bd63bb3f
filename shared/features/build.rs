//! Nothing to do: without a build script the build dependencies' features would not count.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
}
