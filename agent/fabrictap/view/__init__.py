"""What a person looks at: doctor, the catalog. Nothing here feeds the exporters."""
