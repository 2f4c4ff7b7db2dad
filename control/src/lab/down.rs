//! `lab down`: takes away what carries the lab's name, also after half an `up`, and also twice.

use std::path::Path;

use super::{LabError, Layout, Progress, Record, net, process, step};

/// Ends a lab's processes, in the reverse order of their start, then removes its namespaces and its files. Returns false if there is no
/// such lab.
///
/// # Errors
/// [`LabError::Failed`] with the first thing that could not be removed; everything else is.
pub async fn down(run: &Path, lab: &str, progress: &dyn Progress) -> Result<bool, LabError> {
    let layout = Layout::new(run, lab);
    if !layout.directory().exists() {
        return Ok(false);
    }
    let Some(record) = Record::read(&layout)? else {
        // `up` ended before it wrote anything down, so there is nothing but the directory.
        remove_files(&layout)?;
        return Ok(true);
    };
    step(progress, "processes end", async {
        end(&record).await;
        Ok(())
    })
    .await?;
    let mut first = Ok(());
    step(progress, "namespaces are removed", async {
        for namespace in record.namespaces.iter().rev() {
            first = std::mem::replace(&mut first, Ok(())).and(net::remove_namespace(namespace));
        }
        Ok(())
    })
    .await?;
    first?;
    remove_files(&layout)?;
    Ok(true)
}

async fn end(record: &Record) {
    let mut waves: Vec<u8> = record.processes.iter().map(|place| place.wave).collect();
    waves.sort_unstable();
    waves.dedup();
    for wave in waves.into_iter().rev() {
        let places: Vec<_> = record.processes.iter().filter(|place| place.wave == wave).collect();
        for name in process::end(&places).await {
            tracing::warn!("{name} did not end by SIGTERM");
        }
    }
    for name in process::end_marked(&record.mark).await {
        tracing::warn!("{name} did not end by SIGTERM");
    }
}

fn remove_files(layout: &Layout) -> Result<(), LabError> {
    let directory = layout.directory();
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(LabError::failed(format!("removing {}", directory.display()), error))
        }
        _ => Ok(()),
    }
}
