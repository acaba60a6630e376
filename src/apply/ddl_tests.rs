//! The difference of two tables, done to the one, must give the other.

use proptest::prelude::*;

use super::*;

fn column(num: i32, name: &str, declared: &str) -> ColumnFacts {
    ColumnFacts {
        num,
        name: name.into(),
        declared: declared.into(),
        collation: None,
        labels: None,
        not_null: false,
        identity: String::new(),
        generated: String::new(),
        default: None,
        missing: None,
    }
}

fn table(name: &str, columns: Vec<ColumnFacts>) -> Facts {
    Facts { oid: None, schema: "public".into(), name: name.into(), columns, key: None, published: Vec::new(), parent: None }
}

/// What the actions make of a table, as a server would: every step must be possible.
fn done(mut facts: Facts, actions: &[Action]) -> Facts {
    for action in actions {
        let taken = |facts: &Facts, name: &str| facts.columns.iter().any(|c| c.name == name);
        let at = |facts: &Facts, name: &str| facts.columns.iter().position(|c| c.name == name).expect("the column is there");
        match action {
            Action::Rename(to) => (facts.schema, facts.name) = (to.schema.clone(), to.name.clone()),
            Action::DropColumn(name) => drop(facts.columns.remove(at(&facts, name))),
            Action::RenameColumn(from, to) => {
                assert!(!taken(&facts, to), "{to} is taken");
                let index = at(&facts, from);
                if let Some(key) = &mut facts.key {
                    key.columns.iter_mut().filter(|name| *name == from).for_each(|name| name.clone_from(to));
                }
                facts.columns[index].name.clone_from(to);
            }
            Action::Retype(to) => {
                let index = at(&facts, &to.name);
                facts.columns[index].declared.clone_from(&to.declared);
                facts.columns[index].collation.clone_from(&to.collation);
            }
            Action::DropExpression(name) => {
                let index = at(&facts, name);
                facts.columns[index].generated.clear();
                facts.columns[index].default = None;
            }
            Action::Default(name, default) => {
                let index = at(&facts, name);
                facts.columns[index].default.clone_from(default);
            }
            Action::NotNull(name, set) => {
                let index = at(&facts, name);
                facts.columns[index].not_null = *set;
            }
            Action::Identity(name, identity) => {
                let index = at(&facts, name);
                facts.columns[index].identity.clone_from(identity);
            }
            Action::AddColumn(column) => {
                assert!(!taken(&facts, &column.name), "{} is taken", column.name);
                facts.columns.push(column.clone());
            }
            Action::DropKey(_) => facts.key = None,
            Action::AddKey(key) => facts.key = Some(key.clone()),
            Action::Detach(_) => assert!(facts.parent.take().is_some(), "it is no partition"),
            Action::Attach(parent) => assert!(facts.parent.replace(parent.clone()).is_none(), "it is a partition already"),
            Action::RenameParent(from, to) => {
                let parent = facts.parent.as_mut().expect("a partition");
                assert_eq!(parent.table(), *from);
                (parent.schema, parent.name) = (to.schema.clone(), to.name.clone());
            }
        }
    }
    facts.columns.sort_by_key(|column| column.num);
    facts
}

fn facts() -> impl Strategy<Value = Facts> {
    let names = Just(["a", "b", "c", "d", "e"].map(str::to_owned).to_vec()).prop_shuffle();
    let one = (any::<bool>(), any::<bool>(), 0..3_usize, prop::option::of("[01]"), prop::option::of(Just("{5}".to_owned())));
    let columns = prop::collection::vec(one, 5);
    let parent = prop::option::of((0..2_u32, "[pq]", "[12]").prop_map(|(oid, name, bound)| ParentFacts {
        oid: Some(oid),
        schema: "public".into(),
        name,
        bound,
        partition_by: None,
        leaf: false,
    }));
    (names, columns, 0..3_usize, any::<bool>(), "[tu]", parent).prop_map(|(names, columns, keys, deferrable, name, parent)| {
        let types = ["integer", "text", "character varying(5)"];
        let build = |(num, (name, (there, not_null, kind, default, missing))): (i32, (String, _))| {
            let facts = ColumnFacts { not_null, default, missing, ..column(num, &name, types[kind]) };
            (there, facts)
        };
        let all = (1..).zip(names.into_iter().zip(columns)).map(build);
        let columns: Vec<_> = all.filter(|(there, _)| *there).map(|(_, facts)| facts).collect();
        let names: Vec<_> = columns.iter().take(keys).map(|c| c.name.clone()).collect();
        let key = (!names.is_empty()).then(|| KeyFacts { name: "k".into(), columns: names, deferrable });
        Facts { key, parent, ..table(&name, columns) }
    })
}

proptest! {
    #[test]
    fn the_difference_done_gives_the_other(before in facts(), mut after in facts()) {
        let mut got = done(before.clone(), &diff(&before, &after));
        // What old rows show does not change while a column stands.
        for column in got.columns.iter_mut().chain(&mut after.columns) {
            column.missing = None;
        }
        prop_assert_eq!(got, after);
        prop_assert_eq!(diff(&before, &before), vec![]);
    }
}

#[test]
fn a_rename_is_no_drop_and_add_and_a_drop_and_add_is_no_rename() {
    let old = table("t", vec![column(1, "a", "integer")]);
    let renamed = table("t", vec![column(1, "b", "integer")]);
    assert_eq!(diff(&old, &renamed), [Action::RenameColumn("a".into(), "b".into())]);
    let anew = table("t", vec![column(2, "a", "integer")]);
    assert_eq!(diff(&old, &anew), [Action::DropColumn("a".into()), Action::AddColumn(column(2, "a", "integer"))]);
}

#[test]
fn labels_are_added_in_place_and_one_renamed_one_is_recognised() {
    let list = |labels: &[&str]| labels.iter().map(|l| (*l).to_owned()).collect::<Vec<_>>();
    let add = |label: &str, after: Option<&str>| LabelChange::Add {
        label: label.into(),
        after: after.map(str::to_owned),
        before: Some("a".into()),
    };
    assert_eq!(label_changes(&list(&["a", "b"]), &list(&["a", "c", "b"])), Some(vec![add("c", Some("a"))]));
    assert_eq!(label_changes(&list(&["a"]), &list(&["z", "a"])), Some(vec![add("z", None)]));
    let renamed = LabelChange::Rename("b".into(), "x".into());
    assert_eq!(label_changes(&list(&["a", "b"]), &list(&["a", "x"])), Some(vec![renamed]));
    assert_eq!(label_changes(&list(&["a", "b"]), &list(&["x", "y"])), None, "which is which?");
}

#[test]
fn what_is_no_schema_change_is_refused() {
    let kind = |text: &str| SchemaChange::parse(text.as_bytes()).map(|change| change.kind).map_err(|error| error.kind());
    assert_eq!(
        kind(r#"{"kind":"dropped","relation":1,"tag":"DROP TABLE","before":null,"after":null,"note":null}"#),
        Ok(Kind::Dropped)
    );
    assert_eq!(kind(r#"{"kind":"later","tag":"X"}"#), Err(ErrorKind::TooNew));
    assert_eq!(kind("[]"), Err(ErrorKind::Malformed));
    assert_eq!(kind("{"), Err(ErrorKind::Malformed));
}
