"""The bundled trainer: knows no pytest and no checks."""
