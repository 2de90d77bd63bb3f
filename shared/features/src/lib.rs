//! Nothing: this crate unifies the features of what the others depend on (see its `Cargo.toml`).
