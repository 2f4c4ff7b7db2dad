//! Both sides against each other, in one process.

mod calls;
mod carriers;
mod life;
mod services;
mod strangers;
mod support;
