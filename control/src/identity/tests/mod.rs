mod certificates;
mod tokens;
mod workload;
