//! One verb, one file.
pub mod check;
pub mod checkpoint;
pub mod doctor;
pub mod export;
pub mod import;
pub mod inspect;
pub mod kill;
pub mod list;
pub mod restore;
pub mod rm;
pub mod verify;

use engine::Error;

use crate::cli::Verb;
use crate::name;

/// Judges the names on the command line, before anything is done for any of them.
pub fn names(verb: &Verb) -> Result<(), Error> {
    match verb {
        Verb::Checkpoint(a) => {
            let given = a.name.as_deref().or(a.session.as_deref());
            name::session("checkpoint", given.unwrap_or_default()).map(drop)
        }
        Verb::Restore(a) => {
            name::spec("restore", &a.what)?;
            a.as_name.as_deref().map_or(Ok(()), |n| name::session("restore", n).map(drop))
        }
        Verb::Inspect(a) => name::spec("inspect", &a.what).map(drop),
        Verb::Check(a) => a.what.as_deref().map_or(Ok(()), |w| name::spec("check", w).map(drop)),
        Verb::Verify(a) => name::spec("verify", &a.what).map(drop),
        Verb::Rm(a) => name::spec("remove", &a.what).map(drop),
        Verb::Kill(a) => name::session("kill", &a.session).map(drop),
        Verb::Export(a) => name::spec("export", &a.what).map(drop),
        Verb::Import(a) => a.name.as_deref().map_or(Ok(()), |n| name::session("import", n).map(drop)),
        Verb::List | Verb::Doctor => Ok(()),
    }
}
