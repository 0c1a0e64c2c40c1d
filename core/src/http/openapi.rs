//! The OpenAPI 3.1 document: paths from the table of operations, schemas from `openapi_schemas.json`.

use std::sync::LazyLock;

use axum::response::Response;
use serde_json::{Map, Value, json};

use super::front;
use super::routes::{Door, OPERATIONS, Operation};
use crate::domain::code::Code;

static TEXT: LazyLock<String> = LazyLock::new(|| document().to_string());

pub async fn serve() -> Response {
    front::json(200, TEXT.as_str())
}

pub fn document() -> Value {
    let mut paths = Map::new();
    for operation in OPERATIONS {
        let item = paths.entry(operation.path).or_insert_with(|| json!({}));
        item[operation.method] = describe(operation);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "payment-core",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Amounts are decimal strings of major units with exactly the digits of ISO 4217. \
                The same Idempotency-Key with the same request returns the same answer with Idempotent-Replayed: true; \
                keys are remembered for 7 days.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "apiKey": { "type": "http", "scheme": "bearer", "description": "pk_<tenant>_<secret>" },
                "admin": { "type": "http", "scheme": "bearer", "description": "The operator's token." },
            },
        },
    })
}

/// The schemas that are written by hand, and the list of codes.
fn schemas() -> Value {
    let mut schemas: Value = serde_json::from_str(include_str!("openapi_schemas.json"))
        .unwrap_or_else(|e| json!({ "error": e.to_string() }));
    let codes: Vec<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
    schemas["Code"] = json!({ "type": "string", "enum": codes });
    schemas
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn describe(operation: &Operation) -> Value {
    let mut parameters: Vec<Value> = operation
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": { "type": "string" } }))
        .chain(
            operation
                .query
                .iter()
                .map(|name| json!({ "name": name, "in": "query", "schema": { "type": "string" } })),
        )
        .collect();
    if let Some(required) = operation.key {
        parameters.push(json!({
            "name": "Idempotency-Key", "in": "header", "required": required,
            "schema": { "type": "string", "minLength": 1, "maxLength": crate::limits::IDEMPOTENCY_KEY_MAX },
        }));
    }
    let mut success = json!({ "description": operation.summary });
    if !operation.response.is_empty() {
        success["content"] = json!({ "application/json": { "schema": reference(operation.response) } });
    }
    let problem = json!({
        "description": "What went wrong.",
        "content": { "application/problem+json": { "schema": reference("Problem") } },
    });
    let mut described = json!({
        "operationId": operation.id,
        "summary": operation.summary,
        "parameters": parameters,
        "responses": { operation.status.to_string(): success, "default": problem },
        "security": match operation.door {
            Door::Key => json!([{ "apiKey": [] }]),
            Door::Admin => json!([{ "admin": [] }]),
            Door::Open => json!([]),
        },
    });
    if !operation.request.is_empty() {
        described["requestBody"] = json!({ "required": true, "content": { "application/json": { "schema": reference(operation.request) } } });
    }
    described
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                for (name, member) in members {
                    match member.as_str().filter(|_| name == "$ref") {
                        Some(target) => {
                            found.insert(target.to_owned());
                        }
                        None => references(member, found),
                    }
                }
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }

    #[test]
    fn every_reference_leads_somewhere_and_every_schema_is_used() {
        let document = document();
        let mut found = BTreeSet::new();
        references(&document, &mut found);
        let known: BTreeSet<String> = document["components"]["schemas"]
            .as_object()
            .unwrap()
            .keys()
            .map(|name| format!("#/components/schemas/{name}"))
            .collect();
        assert_eq!(found, known);
    }

    #[test]
    fn operations_are_named_once() {
        let ids: BTreeSet<_> = OPERATIONS.iter().map(|o| o.id).collect();
        assert_eq!(ids.len(), OPERATIONS.len());
    }
}
