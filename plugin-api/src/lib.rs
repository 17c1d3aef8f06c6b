//! What a gvmm device plugin is made of.
pub mod fdt;
