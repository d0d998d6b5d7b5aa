//! `headgate passwd`, as an operator and a script meet it.

use headgate_tests::{
    broker::binary,
    users::{Users, passwd},
};
use std::{
    fs,
    io::Write,
    os::unix::fs::{MetadataExt, symlink},
    path::Path,
    process::{Command, Output, Stdio},
};

fn err(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).expect("it is readable")
}

/// The names in a file.
fn names(path: &Path) -> Vec<String> {
    let text = read(path);
    let name = |line: &str| Some(line.split_once(':')?.0.to_owned());
    text.lines().filter_map(name).collect()
}

#[test]
fn users_are_added_changed_and_deleted() {
    let users = Users::new(&[("ann", "1"), ("bob", "2")]);
    let path = users.path();
    assert_eq!(names(&path), ["ann", "bob"]);
    assert_eq!(
        fs::metadata(&path).expect("it is there").mode() & 0o777,
        0o600
    );
    let before = read(&path);
    assert!(
        before.starts_with("# users of a test\nann:$argon2id$v=19$"),
        "{before}"
    );
    assert!(before.contains(":SCRAM-SHA-256$4096:"), "{before}");
    // Only ann's line changes, and the class stays with a new password.
    assert!(
        users
            .passwd(&["-b", "--class", "sensors"], &["ann", "3"])
            .status
            .success()
    );
    assert!(
        users
            .passwd(&["-b", "--no-scram"], &["ann", "4"])
            .status
            .success()
    );
    let after = read(&path);
    let (ann, bob) = (after.lines().nth(1), after.lines().nth(2));
    assert!(
        ann.is_some_and(|line| line.ends_with("::sensors")),
        "{after}"
    );
    assert_eq!(bob, before.lines().nth(2));
    assert!(users.passwd(&["-D"], &["ann"]).status.success());
    assert_eq!(names(&path), ["bob"]);
    let output = users.passwd(&["-D"], &["ann"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(err(&output).contains("no user `ann`"), "{}", err(&output));
}

#[test]
fn a_file_is_made_only_when_that_is_asked_for() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("users");
    let output = passwd(&path, &["-b"], &["ann", "1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        err(&output).contains("headgate passwd -c"),
        "{}",
        err(&output)
    );
    assert!(passwd(&path, &["-b", "-c"], &["ann", "1"]).status.success());
    let text = read(&path);
    let output = passwd(&path, &["-b", "-c"], &["bob", "1"]);
    assert!(err(&output).contains("exists already"), "{}", err(&output));
    assert_eq!(read(&path), text);
    let left: Vec<_> = fs::read_dir(folder.path()).expect("a folder").collect();
    assert_eq!(left.len(), 1, "nothing else is left: {left:?}");
}

#[test]
fn a_link_stays_a_link() {
    let users = Users::new(&[("ann", "1")]);
    let link = users.path().with_file_name("link");
    symlink("users", &link).expect("links can be made");
    assert!(passwd(&link, &["-b"], &["bob", "2"]).status.success());
    assert!(link.is_symlink());
    assert_eq!(names(&users.path()), ["ann", "bob"]);
}

#[test]
fn a_script_gives_the_password_on_standard_input() {
    let users = Users::new(&[]);
    let run = |input: &str| {
        let mut command = Command::new(binary());
        command.arg("passwd").arg(users.path()).arg("ann");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("headgate starts");
        let mut stdin = child.stdin.take().expect("it is piped");
        stdin.write_all(input.as_bytes()).expect("it is read");
        drop(stdin);
        child.wait_with_output().expect("it ends")
    };
    assert_eq!(run("\n").status.code(), Some(1));
    assert_eq!(run("").status.code(), Some(1));
    assert!(names(&users.path()).is_empty());
    let output = run("secret\n");
    assert!(output.status.success(), "{}", err(&output));
    assert_eq!(names(&users.path()), ["ann"]);
    assert!(!read(&users.path()).contains("secret"));
}

#[test]
fn what_cannot_stand_in_the_file_is_refused() {
    let users = Users::new(&[("ann", "1")]);
    let text = read(&users.path());
    for name in ["a:b", "a\nb", "#a", "", "a\u{7}"] {
        let output = users.passwd(&["-b"], &[name, "x"]);
        assert_eq!(output.status.code(), Some(1), "{name:?}");
        assert!(err(&output).contains("can't be a user"), "{}", err(&output));
    }
    for password in ["", "a\u{7}"] {
        let output = users.passwd(&["-b"], &["bob", password]);
        assert_eq!(output.status.code(), Some(1), "{password:?}");
    }
    assert_eq!(read(&users.path()), text);
    // A file that isn't right is not made worse.
    fs::write(users.path(), "ann:x\n").expect("it is writable");
    let output = users.passwd(&["-b"], &["bob", "1"]);
    assert!(err(&output).contains("users:1: "), "{}", err(&output));
    assert_eq!(read(&users.path()), "ann:x\n");
}
