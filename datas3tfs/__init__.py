"""datas3tfs: datasets of numbered files, stored as indexed TARs in S3 and shown as directories."""

__version__ = "0.1.0"
