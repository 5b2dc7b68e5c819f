"""The stages in pipeline order, one program each; import them as alignctl.stages.

Raises:
    ImportError: On `import stages` from the repository root, which would make a second copy of
        every module.
"""

if __name__ != "alignctl.stages":
    raise ImportError("import alignctl.stages instead of stages")
