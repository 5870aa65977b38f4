//! `iii project` (point 16).

use std::fs;
use std::os::unix::fs::PermissionsExt;

use test_rig::Rig;

use crate::person::{Person, check};

fn id(person: &Person) -> String {
    let text = fs::read_to_string(person.folder().join("shop/.iii/project.ini")).expect("an identity");
    let id = text.lines().find_map(|line| line.strip_prefix("project_id=")).expect("an id");
    assert!(text.contains("[project]\n") && text.contains("project_name=shop\n"), "{text}");
    assert!(text.contains("source=init\n"), "{text}");
    id.to_owned()
}

#[test]
fn a_second_init_keeps_identity_and_files() {
    let person = Person::new();
    check(&person.iii(&["project", "init", "shop"]), 0, &[], &["Made project shop", "cd shop", "iii worker add"]);
    let first = id(&person);
    fs::write(person.folder().join("shop/config.yaml"), "workers: []\n").expect("a changed file");
    fs::remove_file(person.folder().join("shop/.gitignore")).expect("a file of the first run");
    check(&person.iii(&["project", "init", "-d", "shop", "other"]), 0, &[], &["a project already", &first]);
    assert_eq!(id(&person), first);
    let config = fs::read_to_string(person.folder().join("shop/config.yaml")).expect("a configuration");
    assert_eq!(config, "workers: []\n");
    assert!(person.folder().join("shop/.gitignore").exists() && !person.folder().join("other").exists());
}

#[test]
fn a_folder_with_files_is_refused_unless_it_is_permitted() {
    let person = Person::new();
    fs::create_dir_all(person.folder().join("shop/.git")).expect("a folder");
    fs::write(person.folder().join("shop/config.yaml"), "# mine\n").expect("a file");
    let answer = person.iii(&["project", "init", "shop"]);
    check(&answer, 1, &[], &["error: ", "config.yaml", "--allow-non-empty"]);
    assert!(!person.folder().join("shop/.iii").exists(), "nothing was begun");
    check(&person.iii(&["project", "init", "shop", "--allow-non-empty"]), 0, &[], &["Made project shop"]);
    let config = fs::read_to_string(person.folder().join("shop/config.yaml")).expect("a file");
    assert_eq!(config, "# mine\n");
}

#[test]
fn an_engine_runs_a_new_projects_configuration() {
    let person = Person::new();
    check(&person.iii(&["project", "init"]), 0, &[], &["Made project work"]);
    let config = fs::read_to_string(person.folder().join("config.yaml")).expect("a configuration");
    // The rig brings the port for workers, and tests take no fixed ones.
    let (_, others) = config.split_once("  - name: iii-http").expect("an entry");
    let others = others.replace("3111", "0").replace("3112", "0");
    let rig = Rig::builder().workers(&format!("  - name: iii-http{others}")).start_engine_only();
    let answer = rig.iii(&["trigger", "engine::functions::list", "--port", &rig.port().to_string()]);
    check(&answer, 0, &["state::get", "stream::set"], &[]);
}

#[test]
fn files_for_docker_are_written_once() {
    let person = Person::new();
    let answer = person.iii(&["project", "generate-docker"]);
    check(&answer, 0, &[], &["warning: ", "hint: run `iii project init` first", "Wrote Dockerfile"]);
    let environment = fs::read_to_string(person.folder().join(".env")).expect("credentials");
    assert!(environment.contains("RABBITMQ_USER=") && environment.contains("RABBITMQ_PASS="), "{environment}");
    let mode = fs::metadata(person.folder().join(".env")).expect("credentials").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let answer = person.iii(&["project", "init", "--allow-non-empty", "--docker"]);
    check(&answer, 0, &[], &["Kept  .env", "Kept  Dockerfile", "Kept  docker-compose.yml"]);
    assert_eq!(fs::read_to_string(person.folder().join(".env")).expect("credentials"), environment);
    let answer = person.iii(&["project", "generate-docker"]);
    assert!(!answer.stderr.contains("warning"), "{answer:?}");
}

#[test]
fn a_template_needs_a_folder_of_templates() {
    let person = Person::new();
    let templates = person.home().join("templates");
    fs::create_dir_all(templates.join("api")).expect("a template");
    fs::write(templates.join("api/config.yaml"), "# api\n").expect("a file");
    let folder = templates.display().to_string();
    check(&person.iii(&["project", "init", "-t", "api"]), 2, &[], &["--template-dir"]);
    let answer = person.iii(&["project", "init", "-t", "none", "--template-dir", &folder]);
    check(&answer, 1, &[], &["`none`", "holds api"]);
    check(&person.iii(&["project", "init", "shop", "-t", "api", "--template-dir", &folder]), 0, &[], &["Made"]);
    let config = fs::read_to_string(person.folder().join("shop/config.yaml")).expect("a file");
    assert_eq!(config, "# api\n");
}
