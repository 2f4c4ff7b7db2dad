//! Both sides against each other, in one process.

mod calls;
mod support;
