//! Both sides against each other, in one process.

mod calls;
mod carriers;
mod federation;
mod life;
mod quotas;
mod services;
mod strangers;
mod support;
